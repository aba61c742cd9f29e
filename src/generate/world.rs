//! The zones, clients and rules that all records tell of: the same for one seed, so that records of different
//! datasets can be joined.

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// Who asks.
#[derive(Debug, Clone)]
pub struct Client {
    pub ip: String,
    pub country: &'static str,
    pub asn: i64,
    pub network: &'static str,
    pub agent: &'static str,
    pub device: &'static str,
    pub class: &'static str,
    /// A bot score; low is a bot.
    pub score: i64,
    pub colo: (&'static str, i64),
}

/// Everything records are made of.
#[derive(Debug)]
pub struct World {
    pub hosts: Vec<String>,
    pub paths: Vec<String>,
    pub origins: Vec<String>,
    pub edges: Vec<String>,
    pub clients: Vec<Client>,
    pub rules: Vec<Rule>,
    pub applications: Vec<String>,
}

/// A firewall rule.
#[derive(Debug, Clone)]
pub struct Rule {
    pub id: String,
    pub source: &'static str,
    pub action: &'static str,
    pub message: &'static str,
}

const NETWORKS: [(i64, &str, &str); 10] = [
    (7922, "COMCAST-7922", "us"),
    (3320, "DTAG Internet service provider operations", "de"),
    (3215, "France Telecom - Orange", "fr"),
    (14618, "AMAZON-AES", "us"),
    (16509, "AMAZON-02", "ie"),
    (24940, "HETZNER-AS", "de"),
    (4134, "CHINANET-BACKBONE", "cn"),
    (45090, "TENCENT-NET-AP", "cn"),
    (12389, "ROSTELECOM-AS", "ru"),
    (28573, "Claro NXT Telecomunicacoes Ltda", "br"),
];
const AGENTS: [(&str, &str, i64); 9] = [
    (
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
        "desktop",
        92,
    ),
    (
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.6 Safari/605.1.15",
        "desktop",
        95,
    ),
    (
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Mobile/15E148 Safari/604.1",
        "mobile",
        97,
    ),
    (
        "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Mobile Safari/537.36",
        "mobile",
        90,
    ),
    ("Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0", "desktop", 88),
    ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "desktop", 1),
    ("python-requests/2.32.3", "desktop", 3),
    ("curl/8.10.1", "desktop", 5),
    ("Go-http-client/2.0", "desktop", 7),
];
const COLOS: [(&str, i64); 8] =
    [("IAD", 354), ("FRA", 4), ("SJC", 16), ("LHR", 17), ("SIN", 35), ("GRU", 87), ("NRT", 28), ("CDG", 13)];

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let sites = ["shop", "www", "api", "blog", "static", "login", "docs", "img"];
        let zones = ["example.com", "example.org", "example.net"];
        let hosts =
            zones.iter().flat_map(|zone| sites.iter().map(move |site| format!("{site}.{zone}"))).collect();
        let mut paths: Vec<String> = [
            "/",
            "/index.html",
            "/login",
            "/api/v1/orders",
            "/api/v1/users/me",
            "/cart",
            "/search",
            "/robots.txt",
            "/wp-login.php",
            "/.env",
        ]
        .map(String::from)
        .into();
        paths.extend((0..400).map(|_| format!("/products/{:06}", random.random_range(0..900_000))));
        paths.extend((0..120).map(|_| format!("/assets/{:016x}.js", random.random::<u64>())));
        let clients = (0..4000).map(|_| client(&mut random)).collect();
        let rules = rules(&mut random);
        Self {
            hosts,
            paths,
            origins: (0..6).map(|n| format!("198.51.100.{}", 10 + n)).collect(),
            edges: (0..24).map(|n| format!("172.70.{}.{}", 100 + n, 20 + n * 3)).collect(),
            clients,
            rules,
            applications: (0..5).map(|_| format!("{:032x}", random.random::<u128>())).collect(),
        }
    }

    /// A client; a few come often.
    pub fn client(&self, random: &mut SmallRng) -> &Client {
        let all = self.clients.len();
        let index = if random.random_bool(0.4) {
            random.random_range(0..all / 40)
        } else {
            random.random_range(0..all)
        };
        &self.clients[index]
    }
}

fn client(random: &mut SmallRng) -> Client {
    let (asn, network, country) = NETWORKS[random.random_range(0..NETWORKS.len())];
    let (agent, device, score) = AGENTS[random.random_range(0..AGENTS.len())];
    let ip = if random.random_bool(0.2) {
        format!(
            "2001:db8:{:x}:{:x}::{:x}",
            random.random_range(1..0xffff),
            random.random_range(0..0xff),
            random.random_range(1..0xffff)
        )
    } else {
        format!(
            "{}.{}.{}.{}",
            random.random_range(11..200),
            random.random_range(0..256),
            random.random_range(0..256),
            random.random_range(1..255)
        )
    };
    let class = match score {
        1 => "searchEngine",
        2..10 if random.random_bool(0.3) => "badHost",
        _ => "noRecord",
    };
    Client {
        ip,
        country,
        asn,
        network,
        agent,
        device,
        class,
        score,
        colo: COLOS[random.random_range(0..COLOS.len())],
    }
}

fn rules(random: &mut SmallRng) -> Vec<Rule> {
    let known = [
        ("waf", "block", "SQLi - Comment"),
        ("waf", "block", "Version Control - Information Disclosure"),
        ("firewallrules", "managed_challenge", "Suspicious country"),
        ("firewallrules", "log", "Known partner"),
        ("ratelimit", "block", "Login rate"),
        ("bic", "block", "Bad browser"),
        ("firewallManaged", "skip", "Allowed health checks"),
    ];
    known
        .map(|(source, action, message)| Rule {
            id: format!("{:032x}", random.random::<u128>()),
            source,
            action,
            message,
        })
        .into()
}
