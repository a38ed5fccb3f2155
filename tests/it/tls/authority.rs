//! A private certificate authority.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};

/// Signs servers' certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(parameters(name, true), key).unwrap())
    }

    /// The authority's own certificate, as PEM text.
    pub(crate) fn certificate(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a server of this DNS name and its key, as PEM text.
    pub(crate) fn server(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut parameters = parameters(name, false);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        (parameters.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

/// A certificate that signs itself and its key, as `openssl req -x509` makes them: marked as an authority's.
pub(crate) fn self_signed(name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    (parameters(name, true).self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn parameters(name: &str, is_authority: bool) -> CertificateParams {
    let mut parameters = CertificateParams::new(vec![name.replace(' ', "-")]).unwrap();
    parameters.distinguished_name.push(DnType::CommonName, name);
    if is_authority {
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    parameters
}
