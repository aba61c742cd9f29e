//! The content of a commit: Delta actions, and in the ledger's commits what each batch adds to each table.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use deltalake::kernel::transaction::CommitData;
use deltalake::kernel::{Action, Add, Metadata, Protocol, Remove, StructField, StructType, Transaction};
use deltalake::protocol::{DeltaOperation, SaveMode};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::file::DataFile;

/// The app id of the `txn` that says up to which ledger version a table has been brought; and the key in the
/// ledger's commitInfo.
///
/// In the ledger's own log the same `txn` is the settled mark: all that landed up to there is in the tables
/// for ever. Every engine keeps a `txn` in its checkpoints, so that a checkpoint tells what is settled,
/// whoever wrote it.
pub(super) const APP: &str = "flarelake";
/// The app id of the `txn` that goes with a settled mark: how many objects the ledger then held. Fewer later
/// on means that another engine took some out.
pub(super) const OBJECTS: &str = "flarelake.objects";
/// The app id of the `txn` that goes with a settled mark: how many tables the ledger had given files to.
pub(super) const TABLES: &str = "flarelake.tables";
/// The key in the commitInfo of upkeep's commits: the run that made it, so that it finds its own commit
/// again.
const RUN: &str = "flarelakeRun";
/// The key in the commitInfo of a commit by which a repair makes up for what another engine did to the
/// ledger.
const REPAIR: &str = "flarelakeRepair";
/// The key in the commitInfo of a projection, and of a landing, that tells which of the same kind came
/// before.
const FROM: &str = "flarelakeFrom";
/// The operation of a fence, and of every engine's vacuum.
const VACUUM: &str = "VACUUM START";
/// What a line of a commit may be, beside files; not one that only a newer protocol has.
const ACTIONS: [&str; 8] =
    ["commitInfo", "add", "remove", "metaData", "protocol", "txn", "cdc", "domainMetadata"];
/// The operation by which other engines put a table back to an older version.
const RESTORE: &str = "RESTORE";
/// The version of [`Landing`]'s form.
const FORMAT: u32 = 1;

/// The tags of a file that tell its times to the microsecond.
pub(super) const TIME_TAGS: [&str; 2] = ["flarelake.min_event_time_us", "flarelake.max_event_time_us"];

impl DataFile {
    fn tags(&self) -> Option<HashMap<String, Option<String>>> {
        self.times.map(|(least, greatest)| {
            let values = [least, greatest].map(|time| Some(time.to_string()));
            TIME_TAGS.map(str::to_owned).into_iter().zip(values).collect()
        })
    }

    fn partition(&self) -> HashMap<String, Option<String>> {
        self.partition_values.iter().map(|(name, value)| (name.clone(), Some(value.clone()))).collect()
    }

    fn add(&self, data_change: bool) -> Add {
        Add {
            path: self.path.clone(),
            partition_values: self.partition(),
            size: self.size as i64,
            modification_time: self.modified_ms,
            data_change,
            stats: Some(self.stats.clone()),
            tags: self.tags(),
            ..Add::default()
        }
    }

    /// `at_ms`: readers of older versions may need the file from then on for as long as a vacuum leaves it.
    fn remove(&self, data_change: bool, at_ms: i64) -> Remove {
        Remove {
            path: self.path.clone(),
            data_change,
            deletion_timestamp: Some(at_ms),
            extended_file_metadata: Some(true),
            partition_values: Some(self.partition()),
            size: Some(self.size as i64),
            tags: self.tags(),
            deletion_vector: None,
            base_row_id: None,
            default_row_commit_version: None,
        }
    }
}

/// One batch: the objects that it lands, and the files that each table shall get.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Landing {
    /// Tells this batch from every other: how a writer finds that its own put had won.
    pub batch: String,
    /// The ids of the objects.
    #[serde(with = "hex_ids")]
    pub objects: Vec<u128>,
    /// Table name to files.
    pub adds: BTreeMap<String, Vec<DataFile>>,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    v: u32,
    #[serde(flatten)]
    landing: Landing,
}

mod hex_ids {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(ids: &[u128], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(ids.iter().map(|id| format!("{id:032x}")))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u128>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|t| u128::from_str_radix(t, 16).map_err(serde::de::Error::custom)).collect()
    }
}

/// What flarelake needs to know of a commit that it reads.
#[derive(Debug, Default)]
pub struct ReadCommit {
    /// Our app's `txn`: in a table the ledger's version that it was brought up to, in the ledger the settled
    /// mark.
    pub txn: Option<u64>,
    /// How many objects the ledger held at its settled mark.
    pub objects: Option<u64>,
    /// Files that no version named may be deleted from now on.
    pub fence: bool,
    /// It takes rows out, and flarelake did not make it.
    pub foreign_delete: bool,
    /// It adds rows, and flarelake did not make it.
    pub foreign_append: bool,
    /// Another engine puts the table back to what it was at an older version.
    pub restore: bool,
    /// What the commit of the same kind before it told: of a projection its `txn`, of a landing its version.
    pub from: Option<u64>,
    /// It makes up for what other engines took out or added before.
    pub repair: bool,
    /// What a ledger's commit lands.
    pub landing: Option<Landing>,
    /// The table's layout, if the commit sets it.
    pub metadata: Option<TableMetadata>,
    /// All of the same action.
    pub layout: Option<Metadata>,
    /// The protocol versions (reader, writer), if the commit sets them.
    pub protocol: Option<(i64, i64)>,
    /// The paths of files that it takes out of the table.
    pub removed: Vec<String>,
    /// The run of upkeep that made it.
    pub run: Option<String>,
}

#[derive(Deserialize)]
struct AddLine {
    add: AddedFile,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AddedFile {
    #[serde(default)]
    data_change: bool,
}

#[derive(Deserialize)]
struct RemoveLine {
    remove: RemovedPath,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RemovedPath {
    path: String,
    #[serde(default)]
    data_change: bool,
}

/// The part of a `metaData` action that decides whether our files fit.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TableMetadata {
    /// The Delta schema as JSON text.
    pub schema_string: String,
    pub partition_columns: Vec<String>,
}

/// What of a table's metaData decides whether our files fit.
pub fn table_metadata(layout: &Metadata) -> Result<TableMetadata, String> {
    let metadata = serde_json::to_value(layout).and_then(serde_json::from_value);
    metadata.map_err(|e| format!("its metaData can't be read: {e}"))
}

/// A table's metaData with more columns, and the commit that says so.
pub fn columns(layout: &Metadata, missing: Vec<StructField>) -> Result<(Metadata, Bytes), String> {
    let with_them = || {
        let mut layout = serde_json::to_value(layout)?;
        let schema: StructType = serde_json::from_str(layout["schemaString"].as_str().unwrap_or_default())?;
        let all = schema
            .fields()
            .cloned()
            .chain(missing.iter().cloned().map(|field| StructField { nullable: true, ..field }));
        layout["schemaString"] =
            serde_json::to_string(&StructType::try_new(all).map_err(serde::ser::Error::custom)?)?.into();
        serde_json::from_value::<Metadata>(layout)
    };
    let layout = with_them().map_err(|e: serde_json::Error| format!("its schema can't be extended: {e}"))?;
    let operation = DeltaOperation::AddColumn { fields: missing };
    let bytes =
        CommitData::new(vec![Action::Metadata(layout.clone())], operation, HashMap::new(), Vec::new())
            .get_bytes();
    Ok((layout, bytes.map_err(|e| e.to_string())?))
}

/// Whether we may write to a table of this protocol (reader, writer); if not, what to say.
pub fn check_protocol((reader, writer): (i64, i64)) -> Result<(), String> {
    if reader <= 1 && writer <= 2 {
        return Ok(());
    }
    Err(format!(
        "its protocol is ({reader},{writer}), which another engine set; flarelake writes protocol (1,2) only"
    ))
}

/// Why a commit can't be read.
#[derive(Debug)]
pub enum Unreadable {
    /// It is not whole, or not a commit.
    Broken(String),
    /// A newer flarelake wrote it.
    Newer(String),
}

impl From<serde_json::Error> for Unreadable {
    fn from(error: serde_json::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Reads a commit's lines. Actions that we don't know are passed over: the format allows for them.
pub fn read(bytes: &[u8]) -> Result<ReadCommit, Unreadable> {
    let (mut commit, mut says_something) = (ReadCommit::default(), false);
    for line in bytes.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|l| !l.is_empty()) {
        // Most lines are files, whose statistics we have no use for: only that the line is whole.
        if line.starts_with(br#"{"add":"#) {
            commit.foreign_append |= serde_json::from_slice::<AddLine>(line)?.add.data_change;
            says_something = true;
            continue;
        }
        if line.starts_with(br#"{"remove":"#) {
            let line: RemoveLine = serde_json::from_slice(line)?;
            commit.foreign_delete |= line.remove.data_change;
            says_something = true;
            commit.removed.push(percent_decode_str(&line.remove.path).decode_utf8_lossy().into_owned());
            continue;
        }
        let mut action: Value = serde_json::from_slice(line)?;
        says_something |= ACTIONS.iter().any(|name| action.get(name).is_some());
        if let Some(info) = action.get("commitInfo") {
            commit.run = info.get(RUN).and_then(Value::as_str).map(str::to_owned);
            commit.fence = info["operation"] == VACUUM;
            commit.from = info.get(FROM).and_then(Value::as_u64);
            commit.restore = info["operation"] == RESTORE;
            commit.repair = info.get(REPAIR).is_some();
        }
        if let Some(envelope) = action.get_mut("commitInfo").and_then(|info| info.get_mut(APP)) {
            let envelope: Envelope = serde_json::from_value(envelope.take())
                .map_err(|e| Unreadable::Broken(format!("its {APP} entry can't be read: {e}")))?;
            if envelope.v != FORMAT {
                return Err(Unreadable::Newer(format!(
                    "its {APP} entry has format {}; this flarelake knows format {FORMAT}: upgrade it",
                    envelope.v
                )));
            }
            commit.landing = Some(envelope.landing);
        }
        if let Some(txn) = action.get("txn").filter(|t| t["appId"] == APP) {
            commit.txn = txn["version"].as_u64();
        }
        if let Some(txn) = action.get("txn").filter(|t| t["appId"] == OBJECTS) {
            commit.objects = txn["version"].as_u64();
        }
        if let Some(metadata) = action.get_mut("metaData") {
            // Whatever else another engine may have put there.
            commit.layout = serde_json::from_value(metadata.clone()).ok();
            commit.metadata = Some(
                serde_json::from_value(metadata.take())
                    .map_err(|e| Unreadable::Broken(format!("its metaData can't be read: {e}")))?,
            );
        }
        if let Some(protocol) = action.get("protocol") {
            let version = |key: &str| protocol[key].as_i64().unwrap_or(i64::MAX);
            commit.protocol = Some((version("minReaderVersion"), version("minWriterVersion")));
        }
    }
    commit.foreign_delete &= commit.run.is_none();
    // A projection tells by its txn whose it is.
    commit.foreign_append &= commit.run.is_none() && commit.landing.is_none() && commit.txn.is_none();
    if says_something {
        return Ok(commit);
    }
    Err(Unreadable::Broken("it is empty: it was not written, or not copied, to its end".to_owned()))
}

fn append(
    actions: Vec<Action>,
    metadata: HashMap<String, Value>,
    txn: Vec<Transaction>,
) -> Result<Bytes, String> {
    let operation = DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None };
    CommitData::new(actions, operation, metadata, txn).get_bytes().map_err(|e| e.to_string())
}

/// The ledger's commit that lands a batch.
///
/// `from`: the version of the landing before it, as for [`projection`].
pub fn landing(landing: &Landing, ledger_file: &DataFile, from: Option<u64>) -> Result<Bytes, String> {
    let envelope =
        serde_json::to_value(Envelope { v: FORMAT, landing: landing.clone() }).map_err(|e| e.to_string())?;
    let from = from.map(|from| (FROM.to_owned(), Value::from(from)));
    append(
        vec![Action::Add(ledger_file.add(true))],
        HashMap::from_iter(from.into_iter().chain([(APP.to_owned(), envelope)])),
        Vec::new(),
    )
}

/// The commit that brings a table up to ledger version `to`.
///
/// `from` is the ledger's version that it had before: an engine that puts log entries without a condition may
/// have put its own in the place of one of ours, and this is how that is found out.
pub fn projection<'a>(
    files: impl IntoIterator<Item = &'a DataFile>,
    from: Option<u64>,
    to: u64,
) -> Result<Bytes, String> {
    let adds = files.into_iter().map(|file| Action::Add(file.add(true))).collect();
    let from = from.map(|from| (FROM.to_owned(), Value::from(from)));
    append(adds, HashMap::from_iter(from), vec![Transaction::new(APP, to as i64)])
}

/// The app id of the `txn` that goes with a settled mark: the last version up to it that gave files to a
/// table. A table that is behind it was restored.
pub(super) fn table_app(table: &str) -> String {
    format!("flarelake.table.{table}")
}

/// What a settled mark tells: all that landed up to version `to` is in the tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settled {
    pub to: u64,
    /// How many objects the ledger holds.
    pub objects: u64,
    /// The last version up to it that gave files to a table.
    pub tables: BTreeMap<String, u64>,
}

/// The ledger's settled mark.
pub fn settled(mark: &Settled) -> Result<Bytes, String> {
    append(Vec::new(), HashMap::new(), marks(mark))
}

/// A settled mark by which a repair makes up for what other engines did to the ledger before.
pub fn repaired(mark: &Settled) -> Result<Bytes, String> {
    append(Vec::new(), HashMap::from([(REPAIR.to_owned(), Value::from(true))]), marks(mark))
}

fn marks(mark: &Settled) -> Vec<Transaction> {
    let of_tables =
        mark.tables.iter().map(|(table, version)| Transaction::new(table_app(table), *version as i64));
    let of_all = [(APP, mark.to), (OBJECTS, mark.objects), (TABLES, mark.tables.len() as u64)];
    of_all.into_iter().map(|(app, version)| Transaction::new(app, version as i64)).chain(of_tables).collect()
}

/// What upkeep does to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The same rows in other files.
    Compact {
        /// Bytes that a file is meant to have.
        target: u64,
    },
    /// Rows go.
    Delete,
    /// Files that are gone go, and rows that were in no file of it come back.
    Repair,
    /// Nothing: whoever has not read this version can't commit before it has.
    Fence {
        /// How long files that no version names are kept, in milliseconds.
        keep_ms: i64,
    },
}

impl Change {
    fn operation(self) -> DeltaOperation {
        match self {
            Self::Compact { target } => {
                DeltaOperation::Optimize { predicate: None, target_size: target as i64 }
            }
            Self::Delete => DeltaOperation::Delete { predicate: None },
            Self::Repair => DeltaOperation::FileSystemCheck {},
            Self::Fence { keep_ms } => DeltaOperation::VacuumStart {
                retention_check_enabled: true,
                specified_retention_millis: Some(keep_ms),
                default_retention_millis: keep_ms,
            },
        }
    }
}

/// The commit by which upkeep puts `adds` in the place of `removes`. A table's `txn` stays as it is.
///
/// `layout` is the table's own metaData, which stands in a compaction once more. delta-rs takes it for no
/// conflict if a file that it is about to take out was taken out meanwhile without a change of data: the rows
/// would be there twice, in our files and in its. A metaData that came meanwhile makes every engine give up.
///
/// `spelled`: how the log has the names of files that other engines wrote, by their paths. A name may be
/// escaped in several ways, and to readers of the log only the same is the same.
pub fn replacement(
    run: &str,
    change: Change,
    removes: &[DataFile],
    adds: &[DataFile],
    at_ms: i64,
    layout: &Metadata,
    spelled: &HashMap<String, String>,
) -> Result<Bytes, String> {
    let data_change = matches!(change, Change::Delete | Change::Repair);
    let layout = (!data_change && !removes.is_empty()).then(|| Action::Metadata(layout.clone()));
    let removes = removes.iter().map(|file| Action::Remove(file.remove(data_change, at_ms)));
    let actions = layout
        .into_iter()
        .chain(removes)
        .chain(adds.iter().map(|file| Action::Add(file.add(data_change))))
        .collect();
    let metadata = HashMap::from([(RUN.to_owned(), Value::from(run))]);
    let bytes = CommitData::new(actions, change.operation(), metadata, Vec::new())
        .get_bytes()
        .map_err(|e| e.to_string())?;
    if spelled.is_empty() { Ok(bytes) } else { spell(&bytes, spelled).map_err(|e| e.to_string()) }
}

/// Takes files out under the very names that the log has for them.
fn spell(commit: &[u8], spelled: &HashMap<String, String>) -> serde_json::Result<Bytes> {
    let mut lines = Vec::new();
    for line in commit.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let mut action: Value = serde_json::from_slice(line)?;
        if let Some(remove) = action.get_mut("remove") {
            let path = percent_decode_str(remove["path"].as_str().unwrap_or_default())
                .decode_utf8_lossy()
                .into_owned();
            if let Some(name) = spelled.get(&path) {
                remove["path"] = Value::from(name.as_str());
            }
        }
        lines.push(action.to_string());
    }
    Ok(lines.join("\n").into())
}

/// A table's first commit, with the files that it begins with. `txn`: the ledger's version of that moment;
/// none for the ledger itself.
pub fn creation(
    location: &url::Url,
    protocol: Protocol,
    metadata: Metadata,
    txn: Option<u64>,
    files: &[DataFile],
) -> Result<Bytes, String> {
    let layout = [Action::Protocol(protocol.clone()), Action::Metadata(metadata.clone())];
    let actions = layout.into_iter().chain(files.iter().map(|file| Action::Add(file.add(true)))).collect();
    let operation = DeltaOperation::Create {
        mode: SaveMode::ErrorIfExists,
        location: location.clone(),
        protocol,
        metadata,
    };
    let txn = txn.map(|version| Transaction::new(APP, version as i64)).into_iter().collect();
    CommitData::new(actions, operation, HashMap::new(), txn).get_bytes().map_err(|e| e.to_string())
}
