//! moto's server: S3, SQS, SNS and IAM on the wire, on a loopback port. Its package, and those of the
//! readers, go into a virtual environment below target/, made here, with pinned versions.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::support::command;

const PACKAGES: [&str; 6] = [
    "moto[server]==5.2.5",
    "chdb==4.4.0",
    "deltalake==1.6.6",
    "duckdb==2.0.0",
    "polars==2.1.0",
    "pyarrow==26.0.1",
];

/// The environment's Python; none if the machine has no Python, which is said out loud.
pub fn python() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    PYTHON
        .get_or_init(|| {
            let found = Command::new("python3").arg("--version").output();
            if !found.is_ok_and(|o| o.status.success()) {
                return None;
            }
            let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
            let python = home.join("bin/python");
            let stamp = home.join(format!("ready-{}", PACKAGES.join("-").replace(['[', ']', '='], "_")));
            if !stamp.exists() {
                run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home));
                run(Command::new(&python)
                    .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
                    .args(PACKAGES));
                fs::write(stamp, "").expect("written");
            }
            Some(python)
        })
        .as_deref()
}

pub fn run(command: &mut Command) -> String {
    let output = command.output().expect("it can be started");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}\n{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Says past the test harness, which swallows what passing tests print, that tests were skipped.
pub fn skipped(what: &str) {
    let _ = writeln!(
        std::io::stderr(),
        "\n1 skipped: {what}: there is no python3 on this machine; install it to run this test"
    );
}

pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(name)
}

/// A Python script in which engines read tables. It leaves as soon as the script is done: at the
/// interpreter's own end PyArrow's threads may still hold files of deltalake's, which are Python objects, and
/// on a busy machine that aborts the process ("terminate called without an active exception").
pub fn readers(python: &Path, script: &Path) -> Command {
    const RUN: &str = "import os, runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__'); sys.stdout.flush(); os._exit(0)";
    let mut command = Command::new(python);
    command.args(["-c", RUN]).arg(script);
    command
}

/// moto's server on a free loopback port, ended when dropped.
pub struct Moto {
    pub child: Child,
    pub endpoint: String,
}

impl Moto {
    pub fn start(python: &Path) -> Self {
        Self::start_with(python, &[])
    }

    pub fn start_with(python: &Path, environment: &[(&str, &str)]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let mut child = Command::new(python)
            .arg(script("moto_server.py"))
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("moto can be started");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if lines.next().expect("moto goes on").expect("text").contains("Running on") {
                break;
            }
        }
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, endpoint: format!("http://127.0.0.1:{port}") }
    }

    pub fn flarelake(&self, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        command
            .env("AWS_ENDPOINT_URL", &self.endpoint)
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .env("AWS_REGION", "us-east-1");
        command
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A way to another address on which connections are cut and delayed, as long as there is trouble.
pub struct Proxy {
    pub endpoint: String,
    pub trouble: Arc<AtomicBool>,
}

impl Proxy {
    pub fn start(to: &str, seed: u64) -> Self {
        let to = to.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("its address"));
        let trouble = Arc::new(AtomicBool::new(true));
        let wanted = trouble.clone();
        std::thread::spawn(move || {
            let mut random = SmallRng::seed_from_u64(seed);
            for from in listener.incoming().flatten() {
                let Ok(target) = TcpStream::connect(&to) else { continue };
                let there = from.try_clone().and_then(|f| Ok((f, target.try_clone()?)));
                let Ok((from_again, target_again)) = there else { continue };
                // Each way has its own fate: bytes until it is cut, and how long each piece waits.
                for (reader, writer) in [(from, target), (target_again, from_again)] {
                    let cut_after =
                        if random.random_bool(0.3) { random.random_range(0..20_000) } else { usize::MAX };
                    let wait = if random.random_bool(0.2) { random.random_range(0..700) } else { 0 };
                    let trouble = wanted.clone();
                    std::thread::spawn(move || pass_on(reader, writer, cut_after, wait, &trouble));
                }
            }
        });
        Self { endpoint, trouble }
    }
}

fn pass_on(mut reader: TcpStream, mut writer: TcpStream, mut left: usize, wait: u64, trouble: &AtomicBool) {
    let mut buffer = [0; 4096];
    while let Ok(n) = reader.read(&mut buffer)
        && n > 0
    {
        if trouble.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(wait));
            if n > left {
                let _ = writer.write_all(&buffer[..left]);
                break;
            }
            left = left.saturating_sub(n);
        }
        if writer.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = (reader.shutdown(Shutdown::Both), writer.shutdown(Shutdown::Both));
}

/// The clients that a test sets the stage with.
pub struct Cloud {
    pub s3: aws_sdk_s3::Client,
    pub sqs: aws_sdk_sqs::Client,
}

impl Cloud {
    pub async fn new(endpoint: &str) -> Self {
        let credentials = aws_sdk_sqs::config::Credentials::new("test", "test", None, None, "test");
        let config = aws_config::defaults(aws_config::BehaviorVersion::latest())
            .region(aws_config::Region::new("us-east-1"))
            .endpoint_url(endpoint)
            .credentials_provider(credentials)
            .load()
            .await;
        let s3 = aws_sdk_s3::config::Builder::from(&config).force_path_style(true).build();
        Self { s3: aws_sdk_s3::Client::from_conf(s3), sqs: aws_sdk_sqs::Client::new(&config) }
    }

    /// A new queue's URL.
    pub async fn queue(&self, name: &str, attributes: &[(&str, &str)]) -> String {
        let mut request = self.sqs.create_queue().queue_name(name);
        for (key, value) in attributes {
            request = request.attributes((*key).into(), *value);
        }
        request.send().await.expect("a queue").queue_url.expect("its URL")
    }

    pub async fn send(&self, queue: &str, body: impl Into<String>) {
        self.sqs.send_message().queue_url(queue).message_body(body).send().await.expect("sent");
    }

    /// A new bucket that announces what is put into it.
    pub async fn bucket(&self, name: &str, queue: Option<&str>) {
        use aws_sdk_s3::types::{Event, NotificationConfiguration, QueueConfiguration};
        self.s3.create_bucket().bucket(name).send().await.expect("a bucket");
        let Some(queue) = queue else { return };
        let arn = format!("arn:aws:sqs:us-east-1:123456789012:{}", queue.rsplit('/').next().expect("a name"));
        let told = QueueConfiguration::builder()
            .queue_arn(arn)
            .events(Event::from("s3:ObjectCreated:*"))
            .build()
            .expect("complete");
        let told = NotificationConfiguration::builder().queue_configurations(told).build();
        self.s3
            .put_bucket_notification_configuration()
            .bucket(name)
            .notification_configuration(told)
            .send()
            .await
            .expect("set");
    }

    pub async fn put(&self, bucket: &str, key: &str, bytes: Vec<u8>) {
        self.s3.put_object().bucket(bucket).key(key).body(bytes.into()).send().await.expect("put");
    }

    /// Messages that wait, and messages that are hidden.
    pub async fn depth(&self, queue: &str) -> (u64, u64) {
        let answer = self
            .sqs
            .get_queue_attributes()
            .queue_url(queue)
            .attribute_names("All".into())
            .send()
            .await
            .expect("attributes");
        let attributes = answer.attributes.expect("attributes");
        let number =
            |name: &str| attributes.get(&name.into()).and_then(|n: &String| n.parse().ok()).unwrap_or(0);
        (number("ApproximateNumberOfMessages"), number("ApproximateNumberOfMessagesNotVisible"))
    }
}
