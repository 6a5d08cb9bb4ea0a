//! Where bytes are kept: a local directory or any S3 store, behind one interface.
