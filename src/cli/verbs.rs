//! The verbs that do work: telemetry and a runtime around a call into the module that does it.

use super::args::{GlobalArgs, MigrateArgs, RunArgs, StatusArgs, TypesArgs};
use super::failure::{Exit, Failure};
use super::operator_args::{DeadLettersArgs, OffsetsArgs, StateArgs};
use super::{dead_letters, offsets, seam, settings, state, status};
use crate::config::{Config, LogFormat, LogSettings, nearest};
use crate::demo::DemoOptions;
use crate::telemetry;

/// `run`.
pub(super) fn run(config: Config, _args: RunArgs) -> Result<(), Failure> {
    install_logs(&config.log)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    // Held until the end: dropping it closes the port.
    let health = telemetry::Health::default();
    let _metrics = telemetry::install(config.metrics.listen, &health)
        .map_err(|error| Failure::new(Exit::Failed, "metrics", &error).next(error.next()))?;
    tracing::info!(worker = %config.worker.name, version = env!("CARGO_PKG_VERSION"), "afterimage starts");
    let runtime = runtime()?;
    let ended = runtime.block_on(seam::run(config, health));
    if ended.is_err() {
        // A topic's thread may still be waiting for the sink, on this runtime: it goes with the process.
        std::mem::forget(runtime);
    }
    ended
}

/// `migrate`.
pub(super) fn migrate(config: Config, args: MigrateArgs) -> Result<(), Failure> {
    install_logs(&config.log)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    runtime()?.block_on(seam::migrate(config, args))
}

/// `status`.
pub(super) fn status(config: Config, args: StatusArgs) -> Result<(), Failure> {
    install_logs(&config.log)?;
    let runtime = runtime()?;
    let ended = runtime.block_on(status::run(config, args));
    // A question to a broker that does not answer may still be open: nobody waits for it any more.
    runtime.shutdown_background();
    ended
}

/// `offsets`.
pub(super) fn offsets(config: Config, args: OffsetsArgs) -> Result<(), Failure> {
    beside(&config.log.clone(), offsets::run(config, args))
}

/// `dead-letters`.
pub(super) fn dead_letters(config: Config, args: DeadLettersArgs) -> Result<(), Failure> {
    beside(&config.log.clone(), dead_letters::run(config, args))
}

/// `state`.
pub(super) fn state(config: Config, args: StateArgs) -> Result<(), Failure> {
    beside(&config.log.clone(), state::run(config, args))
}

/// A verb that is over when its answer is there, whatever else still waits for a broker or the sink.
fn beside(log: &LogSettings, verb: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    install_logs(log)?;
    let runtime = runtime()?;
    let ended = runtime.block_on(verb);
    runtime.shutdown_background();
    ended
}

/// `config types`.
pub(super) fn types(args: &TypesArgs) -> Result<(), Failure> {
    runtime()?.block_on(settings::types(args))
}

/// `demo`. It makes its own configuration; of the global flags only those of the log matter.
pub(super) fn demo(global: &GlobalArgs, args: DemoOptions) -> Result<(), Failure> {
    if let Some(flag) = global.first_set() {
        let reason = "it has no effect here: the demo makes its own configuration";
        return Err(Failure::new(Exit::Usage, flag, reason).next("afterimage demo --help lists what it can be told"));
    }
    let format = match global.log_format.as_deref() {
        None => LogFormat::Text,
        Some(typed) => {
            let known = LogFormat::CHOICES.into_iter().find(|(name, _)| *name == typed).map(|(_, format)| format);
            known.ok_or_else(|| {
                let near = nearest(typed, LogFormat::CHOICES.map(|(name, _)| name));
                let next = near.map_or_else(|| "write text or json".to_owned(), |near| format!("did you mean {near}?"));
                Failure::new(Exit::Usage, "--log-format", format!("`{typed}` is neither text nor json")).next(next)
            })?
        }
    };
    install_logs(&LogSettings { format, level: global.log_level.clone().unwrap_or_else(|| "warn".to_owned()) })?;
    runtime()?.block_on(seam::demo(args))
}

fn install_logs(settings: &LogSettings) -> Result<(), Failure> {
    telemetry::install_logs(settings).map_err(|error| Failure::new(Exit::Usage, "logs", error))
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, "the runtime can't be started", error))
}
