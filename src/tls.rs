//! TLS for the HTTP clients of this process.

/// Makes ring the process's source of cryptography for TLS; harmless when repeated.
///
/// Call it before a client is built: the HTTP library is compiled without a default of its own.
pub fn install_crypto_provider() {
    // It fails when there is one already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
