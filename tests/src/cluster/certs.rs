//! The cluster's certificate authority and the certificates of its parts.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use super::addresses::{DOMAIN, HOST, KUBERNETES_SERVICE};

/// Signs certificates and keeps them, with their keys, in one folder.
pub(super) struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority; certificates of an earlier one lose their meaning.
    pub(super) fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let key = KeyPair::generate()?;
        let certificate = parameters().self_signed(&key)?;
        fs::write(folder.join("ca.crt"), certificate.pem())?;
        write_private(&folder.join("ca.key"), &key.serialize_pem())?;
        let accounts = KeyPair::generate()?;
        fs::write(folder.join("service-accounts.pub"), accounts.public_key_pem())?;
        write_private(&folder.join("service-accounts.key"), &accounts.serialize_pem())?;
        Ok(Self {
            folder: folder.to_owned(),
            issuer: Issuer::new(parameters(), key),
        })
    }

    /// The authority that [`Self::create`] has left in `folder`.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let file = folder.join("ca.key");
        let key = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let issuer = Issuer::new(parameters(), KeyPair::from_pem(&key)?);
        Ok(Self {
            folder: folder.to_owned(),
            issuer,
        })
    }

    /// Issues `name.crt` and `name.key` with which a client proves to be `user`, member of `group`.
    pub(super) fn client(&self, name: &str, user: &str, group: Option<&str>) -> Result<()> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            parameters
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        self.issue(name, parameters, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// Issues `name.crt` and `name.key` of the API server, under all of its names.
    pub(super) fn api_server(&self, name: &str) -> Result<()> {
        let mut parameters = CertificateParams::default();
        parameters
            .distinguished_name
            .push(DnType::CommonName, "kube-apiserver");
        let in_cluster = format!("kubernetes.default.svc.{DOMAIN}");
        for name in [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            &in_cluster,
        ] {
            parameters
                .subject_alt_names
                .push(SanType::DnsName(name.try_into()?));
        }
        for address in [HOST, KUBERNETES_SERVICE, Ipv4Addr::LOCALHOST] {
            parameters
                .subject_alt_names
                .push(SanType::IpAddress(IpAddr::V4(address)));
        }
        self.issue(name, parameters, ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn issue(
        &self,
        name: &str,
        mut parameters: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<()> {
        let key = KeyPair::generate()?;
        parameters.use_authority_key_identifier_extension = true;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![usage];
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        fs::write(self.folder.join(format!("{name}.crt")), certificate.pem())?;
        write_private(&self.folder.join(format!("{name}.key")), &key.serialize_pem())
    }
}

/// What the authority's own certificate says; a function of nothing, so that the issuer can be rebuilt from its key.
fn parameters() -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters
        .distinguished_name
        .push(DnType::CommonName, "llamero-local-cluster");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    parameters
}

fn write_private(file: &Path, text: &str) -> Result<()> {
    let mut options = fs::File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(file)?.write_all(text.as_bytes())?;
    Ok(())
}
