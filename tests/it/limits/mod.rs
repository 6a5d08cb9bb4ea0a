//! What one request, and one account, may cost the gateway: memory, rows and storage.

mod rows;
