//! The pure heart: no I/O, no clock, no async, no logging. Facts in, decisions out.
//!
//! In dataflow order: [`ids`] and [`value`] are the vocabulary, [`decode`] turns a Kafka message into an
//! [`event::Event`], [`record`] is what is known of one Salesforce record, [`order`] says whether an event
//! comes in turn, [`judge`] what it changes ([`front`] when there is nothing to judge, [`unshown`] what must be kept although nothing changed), [`overlay`] and [`batch`] hold what one commit writes,
//! [`format`] is the stored form, [`recovery`] decides what a local store is still worth. What halts a partition: [`lineage`],
//! [`breaker`]; what a person may do about it: [`intervention`].

pub mod align;
pub mod batch;
pub mod breaker;
pub mod decode;
pub mod eight;
pub mod event;
pub mod fold;
pub mod format;
pub mod front;
pub mod ids;
pub mod image;
pub mod intervention;
pub mod judge;
pub mod lineage;
pub mod order;
pub mod overlay;
pub mod position;
pub mod record;
pub mod recovery;
pub mod touched;
pub mod unshown;
pub mod value;
