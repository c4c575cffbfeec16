//! Headless Chromium over its debugging pipe (the Chrome DevTools Protocol).

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::block_in_place;

/// Longest time for anything that the browser is asked.
const DEADLINE: Duration = Duration::from_secs(60);

/// One tab.
pub struct Browser {
    process: Child,
    commands: File,
    answers: mpsc::Receiver<Value>,
    session: Option<String>,
    asked: u64,
    _folder: TempDir,
}

impl Browser {
    /// A tab with this page.
    pub fn open(url: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pipe = |name: &str| {
            let path = folder.path().join(name);
            assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
            path
        };
        let (commands, answers) = (pipe("commands"), pipe("answers"));
        // The browser reads and writes its descriptors 3 and 4.
        let script = r#"exec chromium --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage \
            --remote-debugging-pipe --user-data-dir="$1" --window-size=900,900 about:blank 3<"$2" 4>"$3""#;
        let mut command = Command::new("sh");
        command
            .args(["-c", script, "sh"])
            .arg(folder.path().join("profile"));
        command.arg(&commands).arg(&answers);
        let process = command.stderr(Stdio::null()).spawn().unwrap();
        let mut browser = Self {
            process,
            commands: OpenOptions::new().write(true).open(&commands).unwrap(),
            answers: read(&answers),
            session: None,
            asked: 0,
            _folder: folder,
        };
        let target = browser.ask("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attach = json!({"targetId": target, "flatten": true});
        let session = browser.ask("Target.attachToTarget", attach)["sessionId"].clone();
        browser.session = session.as_str().map(str::to_owned);
        browser.ask("Page.enable", json!({}));
        browser.ask("Page.navigate", json!({"url": url}));
        browser.wait("document.readyState === 'complete' && location.protocol !== 'about:'");
        browser
    }

    /// Send a command and wait for what it gives back.
    pub fn ask(&mut self, method: &str, params: Value) -> Value {
        self.asked += 1;
        let mut command = json!({"id": self.asked, "method": method, "params": params});
        if let Some(session) = &self.session {
            command["sessionId"] = json!(session);
        }
        self.commands
            .write_all(format!("{command}\0").as_bytes())
            .unwrap();
        loop {
            let answer = block_in_place(|| self.answers.recv_timeout(DEADLINE)).unwrap();
            if answer["id"] == self.asked {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    /// Ask the browser instead of the tab, until the session is remembered.
    pub fn forget_session(&mut self) -> Option<String> {
        self.session.take()
    }

    pub fn remember_session(&mut self, session: Option<String>) {
        self.session = session;
    }

    /// The value of an expression in the page.
    pub fn value(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let result = self.ask("Runtime.evaluate", params);
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// Wait until an expression is true.
    pub fn wait(&mut self, expression: &str) {
        let looks = format!(
            "new Promise((done) => {{ let left = 1500; const look = () => ({expression}) ? done(true) \
             : left-- ? setTimeout(look, 20) : done(false); look(); }})"
        );
        let came = self.value(&looks);
        let page = self.value("document.body.innerText");
        assert_eq!(
            came,
            json!(true),
            "it is never true that {expression}; the page says: {page}"
        );
    }

    /// Write into what has the focus.
    pub fn write(&mut self, text: &str) {
        self.ask("Input.insertText", json!({"text": text}));
    }

    /// Press a key; 1 is Alt.
    pub fn press(&mut self, key: &str, code: &str, modifiers: u32) {
        let number = match key {
            "Enter" => 13,
            "Escape" => 27,
            _ => u32::from(key.to_ascii_uppercase().as_bytes()[0]),
        };
        for kind in ["rawKeyDown", "keyUp"] {
            let params = json!({"type": kind, "key": key, "code": code, "modifiers": modifiers,
                "windowsVirtualKeyCode": number});
            self.ask("Input.dispatchKeyEvent", params);
        }
    }

    /// Write a picture of the page.
    pub fn picture(&mut self, path: &Path) {
        let data = self.ask("Page.captureScreenshot", json!({"format": "png"}))["data"].clone();
        let mut decode = Command::new("base64")
            .arg("-d")
            .stdin(Stdio::piped())
            .stdout(File::create(path).unwrap())
            .spawn()
            .unwrap();
        let mut input = decode.stdin.take().unwrap();
        input.write_all(data.as_str().unwrap().as_bytes()).unwrap();
        drop(input);
        assert!(decode.wait().unwrap().success());
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn read(path: &Path) -> mpsc::Receiver<Value> {
    let answers = File::open(path).unwrap();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for message in BufReader::new(answers).split(0) {
            let Ok(message) = message else { return };
            let message = serde_json::from_slice(&message).unwrap();
            if sender.send(message).is_err() {
                return;
            }
        }
    });
    receiver
}
