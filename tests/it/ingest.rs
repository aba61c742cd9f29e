//! The whole loop on the wire: objects are put, S3 announces them to SQS, `flarelake ingest` lands them, and
//! they are asked for.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flarelake::source::queue::sqs::SqsQueue;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::moto::{Cloud, Moto, python, skipped};
use crate::queues::keeps_the_contract;
use crate::support::{flarelake, query_one, stdout};

/// A configuration over a queue, with what else it shall say.
pub fn configuration(dir: &Path, lake: &str, queue: &str, more: &str) -> PathBuf {
    let path = dir.join("flarelake.toml");
    let text = format!(
        "lake = \"{lake}\"\n{more}\n[http]\nlisten = \"127.0.0.1:0\"\n[[source]]\nid = \"cf\"\nlabel = \"Cloudflare\"\nqueue = \"{queue}\"\nbuckets = [\"logs\"]\n"
    );
    fs::write(&path, text).expect("written");
    path
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Logs as the generator makes them: file names and bytes.
pub fn logs(dir: &Path, log_type: &str, rows: u32, files: u32, odd: &str) -> Vec<(String, Vec<u8>)> {
    let out = dir.join(format!("logs-{log_type}"));
    let (rows, files) = (rows.to_string(), files.to_string());
    let arguments = [
        "generate",
        "--log-type",
        log_type,
        "--rows",
        &rows,
        "--files",
        &files,
        "--odd",
        odd,
        "--gzip",
        "--out",
        text(&out),
    ];
    assert!(flarelake(&arguments).status.success());
    let mut found: Vec<PathBuf> =
        walkdir::WalkDir::new(&out).into_iter().map(|e| e.expect("an entry").into_path()).collect();
    found.retain(|p| p.is_file());
    found.sort();
    found
        .into_iter()
        .map(|p| (p.file_name().expect("a name").to_string_lossy().into_owned(), fs::read(&p).expect("read")))
        .collect()
}

pub fn ingest(moto: &Moto, config: &Path, idle: &str) -> String {
    stdout(
        &moto
            .flarelake(&["--config", text(config), "ingest", "--until-idle", idle])
            .output()
            .expect("started"),
    )
}

#[tokio::test]
async fn sqs_keeps_the_contract() {
    let Some(python) = python() else { return skipped("SQS' contract") };
    let moto = Moto::start(python);
    let cloud = Cloud::new(&moto.endpoint).await;
    let url = cloud.queue("contract", &[("VisibilityTimeout", "2")]).await;
    let queue = SqsQueue::new(&url, cloud.sqs.clone());
    keeps_the_contract(&queue, async |body| cloud.send(&url, body).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_into_the_bucket_can_be_asked_for() {
    let Some(python) = python() else { return skipped("ingest over SQS") };
    let dir = tempfile::tempdir().expect("a folder");
    let moto = Moto::start(python);
    let cloud = Cloud::new(&moto.endpoint).await;
    let queue = cloud.queue("logs", &[]).await;
    cloud.bucket("logs", Some(&queue)).await;
    cloud.bucket("lake", None).await;
    // Keys as people have them, and as they should not have them.
    let prefixes = ["http_requests/20261123", "a b+c/ü=1", "double//slash", "100%25", "p%3Dq"];
    for (n, (name, bytes)) in logs(dir.path(), "Cloudflare.HttpRequest", 500, 10, "0").into_iter().enumerate()
    {
        cloud.put("logs", &format!("{}/{n}-{name}", prefixes[n % prefixes.len()]), bytes).await;
    }
    for (name, bytes) in logs(dir.path(), "Cloudflare.Firewall", 120, 3, "0") {
        cloud.put("logs", &format!("firewall/{name}"), bytes).await;
    }
    cloud.put("logs", "http_requests/ownership-challenge-1.txt", b"token".to_vec()).await;
    cloud.put("logs", "http_requests/empty.log.gz", Vec::new()).await;
    // Messages that are none, or not ours, or about what is gone.
    let record = |bucket: &str, key: &str| json!({"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": bucket}, "object": {"key": key, "eTag": "e"}}});
    cloud
        .send(&queue, json!({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "logs"}).to_string())
        .await;
    cloud.send(&queue, json!({"Records": [record("elsewhere", "x.gz")]}).to_string()).await;
    cloud.send(&queue, json!({"Records": [record("logs", "gone.gz")]}).to_string()).await;
    cloud.send(&queue, "this is no JSON").await;
    cloud
        .send(
            &queue,
            "{\"Datetime\":1653974623,\"Source\":\"block\"}\n{\"Datetime\":1653974624,\"Source\":\"log\"}",
        )
        .await;
    let config = configuration(dir.path(), "s3://lake/cf", &queue, "[flush]\nmax_age = \"1s\"\n");
    let said = ingest(&moto, &config, "4s");
    assert!(said.contains("17 landed") && said.contains("2 skipped"), "{said}");
    let ask = |sql: &str| {
        let arguments = ["--config", text(&config), "query", "--format", "ndjson", sql];
        stdout(&moto.flarelake(&arguments).output().expect("started"))
    };
    assert_eq!(
        ask("SELECT count(*) AS n, count(DISTINCT p_row_id) AS d FROM cloudflare_httprequest"),
        "{\"n\":500,\"d\":500}\n"
    );
    assert_eq!(
        ask("SELECT count(*) AS n, max(p_source_id) AS s FROM cloudflare_firewall"),
        "{\"n\":122,\"s\":\"cf\"}\n"
    );
    assert_eq!(
        ask(
            "SELECT reason, object_bucket AS b, object_key = 'gone.gz' AS gone, arrow_cast(payload, 'Utf8') AS p FROM classification_failures ORDER BY reason"
        ),
        "{\"reason\":\"foreign_bucket\",\"b\":\"elsewhere\",\"gone\":false,\"p\":null}\n\
         {\"reason\":\"invalid_json\",\"b\":null,\"gone\":false,\"p\":\"this is no JSON\"}\n\
         {\"reason\":\"missing\",\"b\":\"logs\",\"gone\":true,\"p\":null}\n"
    );
    assert_eq!(cloud.depth(&queue).await, (0, 0));
    // Everything again, as a redrive would: nothing lands twice.
    let keys = cloud.s3.list_objects_v2().bucket("logs").send().await.expect("listed");
    for object in keys.contents() {
        let key = object.key().expect("a key").replace('%', "%25").replace('+', "%2B");
        let mut event = record("logs", &key);
        event["s3"]["object"]["eTag"] = json!(object.e_tag().expect("an ETag").trim_matches('"'));
        cloud.send(&queue, json!({"Records": [event]}).to_string()).await;
    }
    let said = ingest(&moto, &config, "3s");
    assert!(said.contains("objects:  0 landed, 13 came again"), "{said}");
    assert_eq!(ask("SELECT count(*) AS n FROM all_logs"), "{\"n\":622}\n");
    // Upkeep works beside it: days that are over have one file.
    let per_day = "SELECT count(*) = count(DISTINCT p_event_date) AS one FROM lake_files WHERE table_name = 'cloudflare_httprequest'";
    assert_eq!(ask(per_day), "{\"one\":false}\n");
    cloud.send(&queue, "{\"Datetime\":1653974625,\"Source\":\"log\"}").await;
    configuration(dir.path(), "s3://lake/cf", &queue, "[maintenance]\ncompact_every = \"200ms\"\n");
    ingest(&moto, &config, "8s");
    assert_eq!(ask(per_day), "{\"one\":true}\n");
    assert_eq!(ask("SELECT count(DISTINCT p_row_id) AS n FROM all_logs"), "{\"n\":623}\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_not_what_was_announced_lands_and_is_said() {
    let Some(python) = python() else { return skipped("an overwritten object") };
    let dir = tempfile::tempdir().expect("a folder");
    let moto = Moto::start(python);
    let cloud = Cloud::new(&moto.endpoint).await;
    let queue = cloud.queue("logs", &[]).await;
    cloud.bucket("logs", Some(&queue)).await;
    let line =
        |n: u32| format!("{{\"Datetime\":1653974623,\"Action\":\"log\",\"OriginatorRayID\":\"{n}\"}}\n");
    cloud.put("logs", "once.log", line(0).into_bytes()).await;
    let mut etags = Vec::new();
    for n in [1, 2] {
        cloud.put("logs", "twice.log", line(n).into_bytes()).await;
        let head = cloud.s3.head_object().bucket("logs").key("twice.log").send().await.expect("its head");
        etags.push(head.e_tag().expect("an ETag").trim_matches('"').to_owned());
    }
    let lake = dir.path().join("lake");
    let config = configuration(dir.path(), text(&lake), &queue, "log = \"json\"\n");
    let output = moto
        .flarelake(&["--config", text(&config), "ingest", "--until-idle", "2s"])
        .output()
        .expect("started");
    assert!(stdout(&output).contains("2 landed, 1 came again"), "{}", stdout(&output));
    let log = String::from_utf8_lossy(&output.stderr);
    let entries = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let told: Vec<Value> = entries
        .filter(|e| e["message"].as_str().is_some_and(|m| m.starts_with("overwritten before")))
        .collect();
    assert_eq!(told.len(), 1, "{log}");
    let [bucket, key, announced, found] =
        ["bucket", "key", "announced", "found"].map(|field| told[0][field].as_str());
    assert_eq!((bucket, key), (Some("logs"), Some("twice.log")));
    assert_eq!((announced, found), (Some(etags[0].as_str()), Some(etags[1].as_str())));
    assert_eq!(query_one(&lake, "SELECT max(OriginatorRayID) FROM cloudflare_firewall"), "2");
    assert_eq!(query_one(&lake, "SELECT count(*) FROM cloudflare_firewall"), 2);
}

/// A running ingest, its log, and where it tells its metrics.
pub struct Running {
    pub child: Child,
    pub log: PathBuf,
}

impl Running {
    pub fn start(moto: &Moto, config: &Path, log: PathBuf) -> Self {
        let stderr = fs::File::create(&log).expect("a file");
        let mut command = moto.flarelake(&["--config", text(config), "ingest"]);
        let child = command
            .env("FLARELAKE_LOG", "json")
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("started");
        Self { child, log }
    }

    pub fn entries(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.log).expect("a log");
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let told = self.entries().iter().find_map(|e| {
            e["message"].as_str()?.strip_prefix("metrics and health: http://").map(str::to_owned)
        })?;
        let address = told.split('/').next()?.to_owned();
        let mut stream = std::net::TcpStream::connect(address).ok()?;
        std::io::Write::write_all(
            &mut stream,
            format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer))
    }

    /// A metric's value.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").map_or_else(String::new, |(_, text)| text);
        text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0.0)
    }

    pub fn wait(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !done(self) {
            assert!(Instant::now() < end, "{what}: {}", fs::read_to_string(&self.log).unwrap_or_default());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it is ours");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_tells_how_it_goes_and_drains_when_told_to_stop() {
    let Some(python) = python() else { return skipped("ingest as a service") };
    let dir = tempfile::tempdir().expect("a folder");
    let moto = Moto::start(python);
    let cloud = Cloud::new(&moto.endpoint).await;
    let queue = cloud.queue("logs", &[("VisibilityTimeout", "30")]).await;
    cloud.bucket("logs", Some(&queue)).await;
    let lake = dir.path().join("lake");
    let config = configuration(dir.path(), text(&lake), &queue, "[flush]\nmax_age = \"1s\"\n");
    let mut running = Running::start(&moto, &config, dir.path().join("log"));
    running.wait("it becomes ready", |r| r.get("/readyz").is_some_and(|(status, _)| status == 200));
    assert_eq!(running.get("/healthz").expect("an answer").0, 200);
    let files = logs(dir.path(), "Cloudflare.Spectrum", 300, 6, "0.1");
    for (name, bytes) in &files {
        cloud.put("logs", &format!("spectrum/{name}"), bytes.clone()).await;
    }
    // S3's test message is one more than the objects.
    running.wait("everything lands", |r| r.metric("flarelake_messages_deleted_total") >= 7.0);
    assert_eq!(running.metric("flarelake_messages_ignored_total"), 1.0);
    assert_eq!(running.metric("flarelake_objects_landed_total"), 6.0);
    assert_eq!(running.metric("flarelake_messages_received_total{source=\"cf\"}"), 7.0);
    let rejects =
        query_one(&lake, "SELECT count(*) FROM classification_failures").as_f64().expect("a number");
    let metrics = running.get("/metrics").expect("an answer").1;
    let counted: f64 = metrics
        .lines()
        .filter(|l| l.starts_with("flarelake_rejects_total{"))
        .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    assert_eq!(counted, rejects);
    assert_eq!(running.metric("flarelake_rows_total{table=\"cloudflare_spectrum\"}") + rejects, 300.0);
    assert_eq!(running.metric("flarelake_freshness_seconds_count"), 6.0);
    assert!(running.metric("flarelake_flush_seconds_sum") >= running.metric("flarelake_commit_seconds_sum"));
    for name in [
        "flarelake_stored_total",
        "flarelake_leases_lost_total",
        "flarelake_oldest_unlanded_seconds",
        "flarelake_messages_held",
    ] {
        assert!(metrics.contains(name), "{name} is told");
    }
    // More comes, and at once it is told to stop: what it holds lands or goes back; it ends with 0.
    for (n, (name, bytes)) in files.iter().cycle().take(30).enumerate() {
        cloud.put("logs", &format!("more/{n}-{name}"), bytes.clone()).await;
    }
    running.signal(Signal::SIGTERM);
    let began = Instant::now();
    let status = running.child.wait().expect("it ends");
    assert_eq!(status.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(25), "it took {:?}", began.elapsed());
    assert!(
        running.entries().iter().any(|e| e["message"].as_str().is_some_and(|m| m.starts_with("stopping")))
    );
    let landed = query_one(&lake, "SELECT count(*) FROM ingested_objects").as_u64().expect("a number");
    let (waiting, hidden) = cloud.depth(&queue).await;
    assert_eq!((landed + waiting, hidden), (36, 0), "what has not landed can be received at once");
    let said = ingest(&moto, &config, "3s");
    assert_eq!(query_one(&lake, "SELECT count(*) FROM ingested_objects"), 36, "{said}");
    // No credential stands in the log.
    assert!(!fs::read_to_string(&running.log).expect("a log").contains("SECRET"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cant_be_read_goes_to_the_dead_letter_queue_and_lands_after_a_redrive() {
    let Some(python) = python() else { return skipped("redrive") };
    let dir = tempfile::tempdir().expect("a folder");
    let moto = Moto::start(python);
    let cloud = Cloud::new(&moto.endpoint).await;
    let dead = cloud.queue("dead", &[]).await;
    let policy =
        json!({"deadLetterTargetArn": "arn:aws:sqs:us-east-1:123456789012:dead", "maxReceiveCount": "2"})
            .to_string();
    let queue = cloud.queue("logs", &[("VisibilityTimeout", "1"), ("RedrivePolicy", &policy)]).await;
    // A bucket that is listed but not there: no reason to call its objects missing.
    let file = logs(dir.path(), "Cloudflare.HttpRequest", 50, 1, "0").remove(0).1;
    let event = json!({"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": "logs"}, "object": {"key": "a.log.gz"}}}]});
    cloud.send(&queue, event.to_string()).await;
    let lake = dir.path().join("lake");
    let config = configuration(dir.path(), text(&lake), &queue, "");
    let end = Instant::now() + Duration::from_secs(90);
    while cloud.depth(&dead).await.0 == 0 {
        assert!(Instant::now() < end, "the message never reached the dead-letter queue");
        let output = moto
            .flarelake(&["--config", text(&config), "ingest", "--until-idle", "2s"])
            .output()
            .expect("started");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // Given up for now, or already with the dead letters.
        assert!(output.status.success() || said.contains("s3://logs/a.log.gz: given up for now"), "{said}");
    }
    assert_eq!(
        query_one(&lake, "SELECT count(*) FROM classification_failures"),
        0,
        "no reject for what a person can mend"
    );
    // It is mended, and the dead letters are sent again, twice even.
    cloud.bucket("logs", None).await;
    cloud.put("logs", "a.log.gz", file).await;
    let letters = cloud.sqs.receive_message().queue_url(&dead).send().await.expect("received");
    for _ in 0..2 {
        cloud.send(&queue, letters.messages()[0].body().expect("a body")).await;
    }
    let said = ingest(&moto, &config, "3s");
    assert!(said.contains("1 landed, 1 came again"), "{said}");
    assert_eq!(query_one(&lake, "SELECT count(*) FROM cloudflare_httprequest"), 50);
}

/// A user who may do what README's policy allows, but for one action: its key and secret. From here on moto
/// asks who one is.
fn user_without(python: &Path, moto: &Moto, action: &str) -> (String, String) {
    let readme =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("README.md");
    let policy = readme.split("```json\n").nth(1).and_then(|b| b.split("```").next()).expect("a policy");
    let mut policy: Value =
        serde_json::from_str(&policy.replace("eu-west-1", "us-east-1")).expect("README's policy is JSON");
    for statement in policy["Statement"].as_array_mut().expect("statements") {
        statement["Action"].as_array_mut().expect("actions").retain(|a| a != action);
    }
    let script = "import boto3, json, sys, urllib.request\n\
         endpoint, policy = sys.argv[1:]\n\
         iam = boto3.client('iam', endpoint_url=endpoint, aws_access_key_id='test', aws_secret_access_key='test', region_name='us-east-1')\n\
         iam.create_user(UserName='reader')\n\
         iam.put_user_policy(UserName='reader', PolicyName='p', PolicyDocument=policy)\n\
         key = iam.create_access_key(UserName='reader')['AccessKey']\n\
         print(key['AccessKeyId'], key['SecretAccessKey'])\n\
         url = endpoint + '/moto-api/reset-auth'\n\
         urllib.request.urlopen(urllib.request.Request(url, data=b'0', headers={'Content-Type': 'text/plain'}, method='POST'))";
    let keys =
        crate::moto::run(Command::new(python).args(["-c", script, &moto.endpoint, &policy.to_string()]));
    let (key, secret) = keys.trim().split_once(' ').expect("a key and its secret");
    (key.to_owned(), secret.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_readmes_policy_enough_and_names_what_is_missing() {
    let Some(python) = python() else { return skipped("check") };
    let dir = tempfile::tempdir().expect("a folder");
    for (action, place) in [
        ("", ""),
        ("sqs:DeleteMessage", "source cf: queue"),
        ("s3:PutObject", "lake s3://acme-lake/cloudflare"),
        ("s3:GetObject", ""),
    ] {
        let moto = Moto::start(python);
        let cloud = Cloud::new(&moto.endpoint).await;
        let queue = cloud.queue("cloudflare-logs", &[]).await;
        cloud.bucket("acme-cloudflare-logs", None).await;
        cloud.bucket("acme-lake", None).await;
        let config = configuration(dir.path(), "s3://acme-lake/cloudflare", &queue, "");
        let text_of =
            fs::read_to_string(&config).expect("read").replace("\"logs\"", "\"acme-cloudflare-logs\"");
        fs::write(&config, text_of).expect("written");
        let (key, secret) = user_without(python, &moto, action);
        let mut command = moto.flarelake(&["--config", text(&config), "check"]);
        let output = command
            .env("AWS_ACCESS_KEY_ID", key)
            .env("AWS_SECRET_ACCESS_KEY", &secret)
            .output()
            .expect("started");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let missing: Vec<&str> = said.lines().filter(|l| l.starts_with("MISSING")).collect();
        if action.is_empty() {
            assert!(
                output.status.success() && missing.is_empty(),
                "{said}{}",
                String::from_utf8_lossy(&output.stderr)
            );
            assert!(said.contains("put-if-absent") && said.ends_with("everything is there\n"), "{said}");
            assert!(said.contains("ok       lake s3://acme-lake/cloudflare: s3:DeleteObject"), "{said}");
        } else {
            assert_eq!(output.status.code(), Some(1), "{said}{}", String::from_utf8_lossy(&output.stderr));
            assert!(
                missing.iter().any(|l| l.contains(place) && l.contains(&format!("{action} on arn:aws:"))),
                "{said}"
            );
            assert!(missing.iter().all(|l| l.contains(action)), "{said}");
        }
        assert!(!said.contains(&secret));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_in_another_account_are_read_with_a_role_and_the_lake_is_encrypted_with_kms() {
    let Some(python) = python() else { return skipped("another account") };
    let dir = tempfile::tempdir().expect("a folder");
    let moto = Moto::start(python);
    let cloud = Cloud::new(&moto.endpoint).await;
    let queue = cloud.queue("cloudflare-logs", &[]).await;
    cloud.bucket("logs", Some(&queue)).await;
    cloud.bucket("lake", None).await;
    for (name, bytes) in logs(dir.path(), "Cloudflare.HttpRequest", 60, 2, "0") {
        cloud.put("logs", &name, bytes).await;
    }
    let script = "import boto3, json, sys, urllib.request\n\
         endpoint = sys.argv[1]\n\
         iam = boto3.client('iam', endpoint_url=endpoint, aws_access_key_id='test', aws_secret_access_key='test', region_name='us-east-1')\n\
         allow = lambda actions, resource: json.dumps({'Version': '2012-10-17', 'Statement': [{'Effect': 'Allow', 'Action': actions, 'Resource': resource}]})\n\
         trust = {'Version': '2012-10-17', 'Statement': [{'Effect': 'Allow', 'Principal': {'AWS': '*'}, 'Action': 'sts:AssumeRole'}]}\n\
         iam.create_role(RoleName='read-logs', AssumeRolePolicyDocument=json.dumps(trust))\n\
         iam.put_role_policy(RoleName='read-logs', PolicyName='p', PolicyDocument=allow(['sqs:*', 's3:*'], '*'))\n\
         iam.create_user(UserName='writer')\n\
         iam.put_user_policy(UserName='writer', PolicyName='p', PolicyDocument=allow(['sts:AssumeRole'], '*'))\n\
         iam.put_user_policy(UserName='writer', PolicyName='q', PolicyDocument=allow(['s3:GetObject', 's3:PutObject', 's3:ListBucket', 's3:DeleteObject'], ['arn:aws:s3:::lake', 'arn:aws:s3:::lake/*']))\n\
         key = iam.create_access_key(UserName='writer')['AccessKey']\n\
         print(key['AccessKeyId'], key['SecretAccessKey'])\n\
         url = endpoint + '/moto-api/reset-auth'\n\
         urllib.request.urlopen(urllib.request.Request(url, data=b'0', headers={'Content-Type': 'text/plain'}, method='POST'))";
    let keys = crate::moto::run(Command::new(python).args(["-c", script, &moto.endpoint]));
    let (key, secret) = keys.trim().split_once(' ').expect("a key and its secret");
    let config = configuration(
        dir.path(),
        "s3://lake/cf",
        &queue,
        "[store]\nserver_side_encryption = \"aws:kms\"\nkms_key_id = \"lake-key\"\n",
    );
    let run = |arguments: &[&str]| {
        let mut command = moto.flarelake(&[&["--config", text(&config)], arguments].concat());
        command.env("AWS_ACCESS_KEY_ID", key).env("AWS_SECRET_ACCESS_KEY", secret).output().expect("started")
    };
    let own = run(&["check"]);
    let said = String::from_utf8_lossy(&own.stdout).into_owned();
    assert!(
        !own.status.success() && said.contains("MISSING  source cf: bucket logs: s3:GetObject"),
        "{said}"
    );
    // With the role, all of it can be read; the lake is still written by the user.
    let more = fs::read_to_string(&config).expect("read")
        + "[source.aws]\nrole_arn = \"arn:aws:iam::123456789012:role/read-logs\"\nexternal_id = \"of-ours\"\nregion = \"us-east-1\"\n";
    fs::write(&config, more).expect("written");
    let said = stdout(&run(&["check"]));
    assert!(said.ends_with("everything is there\n"), "{said}");
    let said = stdout(&run(&["ingest", "--until-idle", "2s"]));
    assert!(said.contains("2 landed"), "{said}");
    // Everything that was written is encrypted, logs and files.
    crate::moto::run(Command::new(python).args(["-c", &format!(
        "import urllib.request\nurllib.request.urlopen(urllib.request.Request('{}/moto-api/reset-auth', data=b'inf', headers={{'Content-Type': 'text/plain'}}, method='POST'))",
        moto.endpoint
    )]));
    let listed = cloud.s3.list_objects_v2().bucket("lake").send().await.expect("listed");
    assert!(listed.contents().len() >= 6, "{} objects", listed.contents().len());
    for object in listed.contents() {
        let key = object.key().expect("a key");
        let head = cloud.s3.head_object().bucket("lake").key(key).send().await.expect("its head");
        assert_eq!(head.server_side_encryption().map(|e| e.as_str()), Some("aws:kms"), "{key}");
        assert!(
            head.ssekms_key_id().is_some_and(|id| id.ends_with("lake-key")),
            "{key}: {:?}",
            head.ssekms_key_id()
        );
    }
}
