//! A certificate authority of its own for each test that needs one.

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Name};

/// Signs certificates; nobody else knows it.
pub struct Authority {
    certificate: X509,
    key: PKey<Private>,
}

/// A certificate and its key, as PEM.
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// The key, as PKCS #8, without a password.
    pub key: String,
}

impl Authority {
    /// A new one.
    pub fn new(name: &str) -> Authority {
        let key = new_key();
        let certificate = signed(name, &key, None, &key);
        Authority { certificate, key }
    }

    /// Its certificate, as PEM.
    pub fn pem(&self) -> String {
        String::from_utf8(self.certificate.to_pem().unwrap()).unwrap()
    }

    /// A certificate for a host, or for a client of this name.
    pub fn identity(&self, name: &str) -> Identity {
        let key = new_key();
        let certificate = signed(name, &key, Some(&self.certificate), &self.key);
        Identity {
            certificate: String::from_utf8(certificate.to_pem().unwrap()).unwrap(),
            key: String::from_utf8(key.private_key_to_pem_pkcs8().unwrap()).unwrap(),
        }
    }
}

fn new_key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

/// `issuer`: `None` = itself, and it may sign others.
fn signed(name: &str, key: &PKey<Private>, issuer: Option<&X509>, by: &PKey<Private>) -> X509 {
    let mut subject = X509Name::builder().unwrap();
    subject.append_entry_by_nid(Nid::COMMONNAME, name).unwrap();
    let subject = subject.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    let number = BigNum::from_u32(rand::random_range(1..=i32::MAX as u32)).unwrap();
    builder.set_serial_number(&number.to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&subject).unwrap();
    builder.set_issuer_name(issuer.map_or(&*subject, |issuer| issuer.subject_name())).unwrap();
    builder.set_pubkey(key).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(2).unwrap()).unwrap();
    let mut constraints = BasicConstraints::new();
    constraints.critical();
    match issuer {
        None => builder.append_extension(constraints.ca().build().unwrap()).unwrap(),
        Some(_) => {
            builder.append_extension(constraints.build().unwrap()).unwrap();
            let names =
                SubjectAlternativeName::new().dns(name).build(&builder.x509v3_context(issuer.map(|i| &**i), None));
            builder.append_extension(names.unwrap()).unwrap();
        }
    }
    builder.sign(by, MessageDigest::sha256()).unwrap();
    builder.build()
}
