//! Recorded and hand-made streams against what must come out of them.

#[path = "support/memory.rs"]
mod memory;
#[path = "golden/truth.rs"]
mod truth;
#[path = "golden/worker.rs"]
mod worker;

#[path = "golden/edges.rs"]
mod edges;
#[path = "golden/late.rs"]
mod late;
#[path = "golden/recorded.rs"]
mod recorded;
#[path = "golden/repeats.rs"]
mod repeats;
#[path = "golden/script.rs"]
mod script;
#[path = "golden/streams.rs"]
mod streams;
#[path = "golden/traces.rs"]
mod traces;
