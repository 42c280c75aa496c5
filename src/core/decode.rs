//! Kafka message → event.
