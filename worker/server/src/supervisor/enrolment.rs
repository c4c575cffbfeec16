//! The pod's certificate: enrolled before anybody is served, renewed while the pod lives, and handed on to rank 0.

use std::future::Future;
use std::pin::Pin;

use llamero_identity::Serving;
use llamero_identity::credentials::{Material, pair};
use llamero_identity::enrol::args::{EnrolmentArgs, NoRoots};

use super::control::Control;

/// What keeps the certificate; it never ends.
pub type Enrolling = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How the control port is served, and what enrols and renews beside it.
///
/// # Errors
/// Flags that do not go together.
pub fn start(args: &EnrolmentArgs, control: &Control) -> Result<(Serving, Enrolling), NoRoots> {
    let Some(enrolment) = args.enrolment()? else {
        return Ok((Serving::plain(), Box::pin(std::future::pending())));
    };
    let (publisher, credentials) = pair();
    let serving = Serving::mutual(credentials, enrolment.installation.clone());
    let (pod, orders) = (control.pod.clone(), control.orders.clone());
    pod.send_modify(|pod| pod.unenrolled = Some("the operator was not asked yet".to_owned()));
    let tell = move |why: Option<String>, material: Option<&Material>| {
        pod.send_modify(|pod| pod.unenrolled.clone_from(&why));
        if let Some(material) = material {
            orders.send_modify(|orders| orders.credentials = Some(material.clone()));
        }
    };
    Ok((serving, Box::pin(enrolment.keep(publisher, tell))))
}
