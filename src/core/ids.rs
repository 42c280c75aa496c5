//! Salesforce ids.
