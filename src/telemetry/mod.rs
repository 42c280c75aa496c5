//! What the process says about itself: log lines for people, metrics for Prometheus.
//!
//! Neither ever holds a record's value: metrics have no record keys as labels, and log levels of the
//! database driver that print statement parameters can't be switched on.

mod endpoint;
mod health;
mod logs;
pub mod names;

pub use endpoint::{MetricsError, MetricsServer, install, serve};
pub use health::{ASK_SINK, Beat, Health, Partitions};
pub use logs::{LogError, install as install_logs, is_json, json_line};
