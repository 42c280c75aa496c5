//! Stored form.
