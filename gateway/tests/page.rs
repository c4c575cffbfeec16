//! The chat page in a real browser.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

mod support;

use std::path::Path;
use std::sync::Arc;

use llamero_gateway::Settings;
use llamero_gateway::keys::KeyStore;
use llamero_proto::v1::completion_request::Prompt;
use llamero_proto::v1::{CompletionRequest, FinishReason};
use serde_json::json;
use support::browser::Browser;
use support::with_worker;

const KEY: &str = "sk-page-0123456789";

/// Roles and texts of the conversation that a request has.
fn conversation(request: &CompletionRequest) -> Vec<(String, String)> {
    let Some(Prompt::Chat(chat)) = &request.prompt else {
        panic!("{request:?}")
    };
    let messages = chat.messages.iter();
    messages
        .map(|message| (message.role.clone(), message.content.clone()))
        .collect()
}

fn said(turns: &[(&str, &str)]) -> Vec<(String, String)> {
    turns
        .iter()
        .map(|&(role, text)| (role.to_owned(), text.to_owned()))
        .collect()
}

fn set(browser: &mut Browser, id: &str, value: &str) {
    browser.value(&format!(
        "{{ const field = document.getElementById('{id}'); field.value = {value:?}; \
         field.dispatchEvent(new Event('change')); }}"
    ));
}

fn enter(browser: &mut Browser, text: &str) {
    browser.value("document.getElementById('text').focus()");
    browser.write(text);
    browser.press("Enter", "Enter", 0);
}

fn shows(text: &str) -> String {
    format!("document.getElementById('talk').innerText.includes({text:?})")
}

/// The page asks for a key, and takes one.
fn unlock(browser: &mut Browser) {
    browser.wait(&shows("Enter it under Options"));
    browser.press("o", "KeyO", 1);
    browser.wait("document.activeElement.id === 'system'");
    browser.write("Be brief.");
    set(browser, "temperature", "0.5");
    set(browser, "stop", "END");
    set(browser, "key", KEY);
    browser.wait("document.getElementById('model').value === 'org/smol'");
    browser.press("o", "KeyO", 1);
    browser.wait("document.activeElement.id === 'text'");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Chromium"]
async fn people_chat_with_keyboard_and_key_and_chats_stay_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.yaml");
    std::fs::write(&path, format!("keys: [{{name: page, key: {KEY}}}]")).unwrap();
    let settings = Settings {
        keys: Some(Arc::new(KeyStore::load(&path).unwrap())),
        ..Settings::default()
    };
    let (served, mut worker) = with_worker(settings).await;
    let mut browser = Browser::open(&format!("http://{}/", served.http));
    unlock(&mut browser);

    // The first chat is left in the middle of its answer.
    enter(&mut browser, "one");
    let call = worker.call().await;
    assert_eq!(
        conversation(&call.request),
        said(&[("system", "Be brief."), ("user", "one")])
    );
    assert_eq!(
        (call.request.temperature, &call.request.stop[..]),
        (Some(0.5), &["END".to_owned()][..])
    );
    let mut answering = call.accept().await;
    answering.send("alpha ", &[1], None).await;
    browser.wait(&shows("alpha"));
    browser.press("n", "KeyN", 1);
    answering.cancelled().await;
    browser.wait(&format!("!{}", shows("alpha")));

    // Nothing of it is in the second.
    enter(&mut browser, "two");
    let call = worker.call().await;
    assert_eq!(
        conversation(&call.request),
        said(&[("system", "Be brief."), ("user", "two")])
    );
    let mut answering = call.accept().await;
    answering.send("<b>beta</b>", &[1], None).await;
    answering.send("!", &[2], Some(FinishReason::Stop)).await;
    browser.wait(&shows("<b>beta</b>!"));
    browser.wait(&shows("2 tokens in"));
    assert_eq!(browser.value(&shows("alpha")), json!(false));

    // An answer that is stopped stays, and the chat goes on with it.
    enter(&mut browser, "three");
    let mut answering = worker.call().await.accept().await;
    answering.send("gamma", &[1], None).await;
    browser.wait(&shows("gamma"));
    browser.press("Escape", "Escape", 0);
    answering.cancelled().await;
    browser.wait(&shows("stopped, "));
    enter(&mut browser, "four");
    let call = worker.call().await;
    let turns = [
        ("system", "Be brief."),
        ("user", "two"),
        ("assistant", "<b>beta</b>!"),
        ("user", "three"),
        ("assistant", "gamma"),
        ("user", "four"),
    ];
    assert_eq!(conversation(&call.request), said(&turns));
    call.refuse(tonic::Status::invalid_argument("this is refused"));
    browser.wait(&shows("this is refused"));
    finer_points(&mut browser);
}

/// Copying, colours, and what the page's policy forbids.
fn finer_points(browser: &mut Browser) {
    let permissions = json!({"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]});
    let session = browser.forget_session();
    browser.ask("Browser.grantPermissions", permissions);
    browser.remember_session(session);
    browser.value("document.querySelector('.copy').click()");
    browser.wait("document.querySelector('.copy').textContent === 'Copied'");
    let colour = "getComputedStyle(document.body).backgroundColor";
    set(browser, "theme", "light");
    let light = browser.value(colour);
    picture(browser, "page-light.png");
    set(browser, "theme", "dark");
    assert_ne!(browser.value(colour), light);
    browser.press("o", "KeyO", 1);
    picture(browser, "page-dark.png");
    let inline = "{ const script = document.createElement('script'); script.textContent = 'window.ran = true'; \
                  document.body.append(script); window.ran ?? false; }";
    assert_eq!(browser.value(inline), json!(false));
}

/// For people who want to see it: LLAMERO_PICTURES names a folder.
fn picture(browser: &mut Browser, name: &str) {
    if let Some(folder) = std::env::var_os("LLAMERO_PICTURES") {
        browser.picture(&Path::new(&folder).join(name));
    }
}
