//! What decides who is who: signing requests, certificates, and what Secrets and ConfigMaps hold of them.

use std::time::{Duration, SystemTime};

use llamero_fuzz::{Shape, Target, drive};
use llamero_identity::authority::{self, Authority};
use llamero_identity::certificate::{self, Certificate};
use llamero_identity::{Identity, Role};
use rcgen::{CertificateParams, KeyPair};

use crate::outcome;

const DAY: Duration = Duration::from_secs(86_400);

fn somebody() -> Identity {
    Identity {
        trust_domain: "cluster.local".to_owned(),
        namespace: "team".to_owned(),
        role: Role::Worker {
            group: "llama-0".to_owned(),
        },
        pod: "llama-0-0".to_owned(),
    }
}

/// Whatever a request holds, a certificate that is signed for it names who the authority says, and nobody else.
#[test]
fn signing_requests_and_certificates() {
    let now = SystemTime::now();
    let authority = Authority::open(&authority::generate(now).unwrap(), DAY, now).unwrap();
    let key = KeyPair::generate().unwrap();
    let request = |params: CertificateParams| params.serialize_request(&key).unwrap().der().to_vec();
    let named = CertificateParams::new(vec!["operator.example".to_owned()]).unwrap();
    let requests = [request(CertificateParams::default()), request(named)];
    let signed = authority.sign(&requests[0], &somebody(), now).unwrap();
    let mut seeds = requests.to_vec();
    seeds.extend(signed.iter().chain(authority.roots()).map(|one| one.to_vec()));
    let target = Target {
        name: "certificate",
        shape: Shape::Bytes,
        factor: 400,
        constant: 64 << 10,
        threads: false,
    };
    drive(target, || {
        (seeds, move |input: &[u8]| {
            let signed = authority.sign(input, &somebody(), now);
            if let Ok(chain) = &signed {
                let read = Certificate::read(&chain[0]).unwrap();
                assert_eq!(read.identity, somebody());
            }
            [
                outcome(signed),
                outcome(Certificate::read(input)),
                outcome(certificate::not_before(input)),
                outcome(certificate::subject(input)),
            ]
            .join(" ")
        })
    });
}

/// Names are read as they are written, and what is no certificate is told.
#[test]
fn names_and_bundles() {
    let now = SystemTime::now();
    let pems = authority::generate(now).unwrap();
    let others = [Role::Operator, Role::Gateway].map(|role| Identity { role, ..somebody() });
    let names = others.into_iter().chain([somebody()]);
    let seeds = names
        .map(|name| name.to_string().into_bytes())
        .chain([pems.roots.clone().into_bytes()])
        .collect();
    let target = Target {
        name: "bundle",
        shape: Shape::Text,
        factor: 400,
        constant: 64 << 10,
        threads: false,
    };
    drive(target, || {
        (seeds, move |input: &[u8]| {
            let Ok(text) = str::from_utf8(input) else {
                return "no text".to_owned();
            };
            let name = text.parse::<Identity>();
            if let Ok(name) = &name {
                assert_eq!(name.to_string(), text);
            }
            let changed = authority::Pems {
                roots: text.to_owned(),
                ..pems.clone()
            };
            [
                outcome(name),
                outcome(authority::certificates(text, "ca.crt")),
                outcome(Authority::open(&changed, DAY, now)),
            ]
            .join(" ")
        })
    });
}
