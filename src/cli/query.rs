//! `flarelake query`: SQL over the lake.

use std::io::{self, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::answer::{Form, check_stdout, listing, open, print, print_to_stdout, saved, wrong};
use super::{End, Settings, Usage, output, shell, signal};
use crate::base::clock;
use crate::query::{Expanded, SavedQuery, Session, Value, built_in, split};

/// How long a statement may take to notice a signal.
const SIGNAL_PATIENCE: Duration = Duration::from_secs(1);

/// Links that are followed, one to the other, as many as the system does.
const MOST_LINKS: usize = 40;

/// What to ask.
#[derive(Debug, Args)]
pub struct QueryArguments {
    /// The statement, read-only; by default a shell, or statements from standard input
    #[arg(value_name = "SQL", conflicts_with = "file")]
    sql: Option<String>,
    /// Read the statement from a file, or take a saved query by its name
    #[arg(short, long, value_name = "FILE")]
    file: Option<String>,
    /// The value of $NAME in the statement; may be repeated
    #[arg(short, long = "param", value_name = "NAME=VALUE", value_parser = name_and_value)]
    parameters: Vec<(String, String)>,
    /// List the saved queries, with descriptions and parameters
    #[arg(long, conflicts_with_all = ["sql", "file", "parameters"])]
    list: bool,
    #[command(flatten)]
    form: Form,
    /// Write the result to a file, which appears once complete
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it NAME=VALUE")?;
    Ok((name.trim_start_matches('$').to_owned(), value.to_owned()))
}

pub async fn run(arguments: QueryArguments, settings: Settings) -> anyhow::Result<End> {
    if arguments.list {
        output::say(listing(&built_in()))?;
        return Ok(End::Done);
    }
    if arguments.output.is_none() {
        check_stdout(arguments.form.format)?;
    }
    let statements = match (&arguments.sql, &arguments.file) {
        (Some(sql), _) => vec![bound(sql, &arguments.parameters)?],
        (None, Some(file)) => {
            let saved = saved(file)?;
            let values = saved.arguments(&arguments.parameters).map_err(wrong)?;
            vec![(saved.sql, values)]
        }
        (None, None) if io::stdin().is_terminal() => return shell::run(settings).await,
        (None, None) => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).context("can't read standard input")?;
            split(&text).iter().map(|sql| bound(sql, &arguments.parameters)).collect::<anyhow::Result<_>>()?
        }
    };
    if statements.is_empty() {
        return Err(
            Usage("give a statement, a file with -f, or statements on standard input".to_owned()).into()
        );
    }
    if statements.len() > 1 && arguments.output.is_some() {
        return Err(Usage("-o takes the result of one statement".to_owned()).into());
    }
    let session = open(&settings).await?;
    tokio::spawn(async {
        signal().await;
        // Planning gives nobody a turn, and may take long: then the process ends here.
        clock::sleep(SIGNAL_PATIENCE).await;
        std::process::exit(130);
    });
    let answer = async {
        for (sql, values) in &statements {
            match &arguments.output {
                Some(path) => write_file(&session, sql, values, arguments.form, path).await?,
                None => print_to_stdout(&session, sql, values, arguments.form).await?,
            }
        }
        Ok(End::Done)
    };
    tokio::select! {
        end = answer => end,
        // A file that was begun, and what went to disk, goes with us.
        () = signal() => Ok(End::Interrupted),
    }
}

/// A statement of no saved query, with what its parameters stand for.
fn bound(sql: &str, given: &[(String, String)]) -> anyhow::Result<(String, Vec<(String, Value)>)> {
    // Its own comments are no header.
    let plain = SavedQuery { sql: sql.to_owned(), ..SavedQuery::parse("the statement", "")? };
    Ok((sql.to_owned(), plain.arguments(given).map_err(wrong)?))
}

/// Writes a file that is there whole, or not at all. What is no file (a pipe, a device) is written to, not
/// replaced; so is a descriptor of ours: others may have written before us where it leads, and may go on.
async fn write_file(
    session: &Session,
    sql: &str,
    values: &[(String, Value)],
    form: Form,
    path: &Path,
) -> anyhow::Result<()> {
    let cant = || format!("can't write {}", path.display());
    // A link means what it points to.
    let target = followed(path).with_context(cant)?;
    match descriptor(&target) {
        Some(1) => return print_to_stdout(session, sql, values, form).await,
        Some(2) => {
            let format = form.format(Expanded::Off, io::stderr().is_terminal());
            return print(session, sql, values, format, io::BufWriter::new(io::stderr())).await;
        }
        own => {
            if own.is_some() || target.exists() && !target.is_file() {
                let file = std::fs::OpenOptions::new().append(true).open(&target).with_context(cant)?;
                let format = form.format(Expanded::Off, file.is_terminal());
                return print(session, sql, values, format, io::BufWriter::new(file)).await;
            }
        }
    }
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let before = std::fs::metadata(&target).ok();
    // A new file by the umask, as any; in the place of another nobody sees more than of that.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(if before.is_some() { 0o600 } else { 0o666 });
    let file = tempfile::Builder::new().permissions(mode).tempfile_in(folder).with_context(cant)?;
    let format = form.format(Expanded::Off, false);
    print(session, sql, values, format, io::BufWriter::new(file.reopen().with_context(cant)?)).await?;
    if let Some(before) = before {
        keep_mode(file.as_file(), &before).with_context(cant)?;
    }
    file.as_file().sync_all().with_context(cant)?;
    file.persist(&target).with_context(cant)?;
    Ok(())
}

/// Where a path's links lead, be something there or not; as far as to a descriptor of ours, which is a link
/// that only looks like one.
fn followed(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let folder =
            path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).canonicalize()?;
        let Some(name) = path.file_name() else { return path.canonicalize() };
        path = folder.join(name);
        match path.read_link() {
            Ok(to) if descriptor(&path).is_none() => path = folder.join(to),
            _ => return Ok(path),
        }
    }
    Err(io::Error::other("too many links, one to the other"))
}

/// Which descriptor of ours a path names that was followed, as /dev/stdout and /dev/fd/3 do.
fn descriptor(path: &Path) -> Option<u32> {
    let (folder, number) = (path.parent()?, path.file_name()?.to_str()?.parse().ok()?);
    // /proc/self is a link to our own number; where there is no /proc, /dev/fd is the folder itself.
    let is_ours = folder == Path::new("/dev/fd")
        || folder.starts_with(format!("/proc/{}", std::process::id())) && folder.ends_with("fd");
    is_ours.then_some(number)
}

/// Gives a file the mode of the one that it replaces; without the group's part if the group can't be kept.
fn keep_mode(file: &std::fs::File, before: &std::fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
    let now = file.metadata()?;
    let same_group = now.gid() == before.gid() || fchown(file, None, Some(before.gid())).is_ok();
    let mode = before.mode() & if same_group { 0o777 } else { 0o707 };
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}
