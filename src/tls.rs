//! TLS for the HTTP clients of this process.

/// Installs ring as the process's TLS cryptography provider. Safe to repeat.
///
/// Call it before building a client: the HTTP library is compiled without a default provider.
pub fn install_crypto_provider() {
    // Fails if a provider is already installed, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
