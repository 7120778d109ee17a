//! Redis behind TLS, with a certificate of the test's own. Whose certificates are trusted is a matter of
//! the whole process, so this program is its own client, too.

mod support;

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, SystemTime},
};

use libtest_mimic::{Arguments, Failed, Trial};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use support::{Cluster, Server, free_port, fresh_dir};
use tower_offload::{Change, End, JobId, Outcome, Record, Status, Store, store::Interest};
use tower_offload_redis::RedisStore;

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    if let [_, kind, urls @ ..] = &*arguments
        && ["server", "cluster"].contains(&kind.as_str())
    {
        return client(kind == "cluster", urls);
    }
    let trials = vec![
        Trial::test("a_job_of_a_server_behind_tls", a_server),
        Trial::test("a_job_of_a_cluster_behind_tls", a_cluster),
        Trial::test("a_server_whose_certificate_is_not_trusted_is_refused", not_trusted),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

// ------------------------------------------------------------------------------------------- tests

/// The files of an authority of the test's own, and of a server on loopback.
struct Certificates(PathBuf);

impl Certificates {
    fn new() -> Result<Self, Failed> {
        let dir = fresh_dir();
        let mut authority = CertificateParams::new([])?;
        // With the default one of both, the server's certificate would seem to be its own issuer.
        authority.distinguished_name.push(DnType::CommonName, "authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let server = CertificateParams::new(["127.0.0.1".to_owned()])?;
        let server = server.signed_by(&key, &authority)?;
        std::fs::write(dir.join("authority"), authority.pem())?;
        std::fs::write(dir.join("certificate"), server.pem())?;
        std::fs::write(dir.join("key"), key.serialize_pem())?;
        Ok(Self(dir))
    }

    /// What a client says of these URLs that trusts this authority, and whether all was well.
    fn ask(&self, kind: &str, urls: &[String]) -> Result<(bool, String), Failed> {
        let mut client = Command::new(std::env::current_exe()?);
        client.arg(kind).args(urls).env("SSL_CERT_FILE", self.0.join("authority"));
        let output = client.env_remove("SSL_CERT_DIR").output()?;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn a_server() -> Result<(), Failed> {
    let certificates = Certificates::new()?;
    let server = Server::start_tls(&certificates.0, &[]);
    well(certificates.ask("server", &[server.url()])?)
}

fn a_cluster() -> Result<(), Failed> {
    let certificates = Certificates::new()?;
    let cluster = Cluster::of((0..3).map(|_| {
        let bus = free_port().to_string();
        let arguments =
            ["--cluster-enabled", "yes", "--cluster-port", &bus, "--tls-cluster", "yes"];
        Server::start_tls(&certificates.0, &arguments)
    }));
    well(certificates.ask("cluster", &cluster.urls())?)
}

fn not_trusted() -> Result<(), Failed> {
    let (certificates, others) = (Certificates::new()?, Certificates::new()?);
    let server = Server::start_tls(&certificates.0, &[]);
    let (is_well, said) = others.ask("server", &[server.url()])?;
    match !is_well && said.contains("invalid peer certificate") {
        true => Ok(()),
        false => Err(format!("is well: {is_well}, says: {said}").into()),
    }
}

fn well((is_well, said): (bool, String)) -> Result<(), Failed> {
    if is_well { Ok(()) } else { Err(said.into()) }
}

// ------------------------------------------------------------------------------------------ client

/// Two nodes, a job of the one, and a waiter of the other.
#[tokio::main(flavor = "current_thread")]
async fn client(is_cluster: bool, urls: &[String]) {
    let builder = match is_cluster {
        true => RedisStore::cluster(urls),
        false => RedisStore::builder(&urls[0]),
    };
    let here = builder.clone().connect().await.unwrap();
    let there = builder.connect().await.unwrap();
    for _ in 0..20 {
        let id = JobId::random().unwrap();
        let record = Record::running(id, SystemTime::now(), Duration::from_secs(3600));
        here.insert(record, 0).await.unwrap();
        let waiter = tokio::spawn(there.changed(id, 0, Interest::Status));
        there.read(id, None).await.unwrap();
        let head = http::Response::new(()).into_parts().0;
        let end = Change::Finish(End::Response(Outcome::new(&head, b"done", None)));
        here.change(id, end).await.unwrap();
        // Sooner than it would look again of itself.
        tokio::time::timeout(Duration::from_secs(8), waiter).await.unwrap().unwrap().unwrap();
        assert_eq!(there.read(id, None).await.unwrap().unwrap().status(), Status::Succeeded);
    }
}
