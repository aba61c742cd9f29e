//! `flarelake query` without a statement: a shell with history, completion, several lines a statement, and a
//! pager.

use std::io::{self, BufWriter, Write};
use std::process::{Child, Command, Stdio};

use clap::ValueEnum as _;
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{CompletionType, Editor, Helper, Highlighter, Hinter};

use super::answer::{FormatName, by_width, listing, open, print, saved};
use super::{End, Settings, output};
use crate::base::clock;
use crate::base::printable::printable;
use crate::config;
use crate::query::{Expanded, Session, TABLES, Value, built_in, completions, is_complete, split};

const HELP: &str = "\
Statements end with a semicolon and may be many lines long.
Tab completes, Ctrl-R searches the history, Ctrl-C cancels.
  \\d [TABLE]              the tables, or a table's columns
  \\l                      the saved queries
  \\run NAME [p=VALUE …]   asks a saved query, or a file
  \\x [on|off|auto]        a record below the other instead of a table; auto: where the table is too wide
  \\f table|csv|json|ndjson  the form of results
  \\timing [on|off]        how long each statement took
  \\q                      the end (also Ctrl-D)
";
#[derive(Helper, Hinter, Highlighter)]
struct Assistant<'a> {
    session: &'a Session,
}

impl Completer for Assistant<'_> {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (word, found) = completions(self.session.vocabulary(), line, at);
        Ok((
            word.start,
            found.into_iter().map(|name| Pair { display: name.clone(), replacement: name }).collect(),
        ))
    }
}

impl Validator for Assistant<'_> {
    fn validate(&self, context: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        let text = context.input().trim();
        let done = text.is_empty()
            || text.starts_with('\\')
            || is_complete(text)
            || ["quit", "exit", "help"].contains(&text);
        Ok(if done { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

/// How results are shown.
struct Shown {
    format: FormatName,
    /// None: by the terminal's width.
    expanded: Option<Expanded>,
    timing: bool,
}

/// Reads and answers, until the person has enough.
pub async fn run(settings: Settings) -> anyhow::Result<End> {
    let session = open(&settings).await?;
    let editing = rustyline::Config::builder()
        .completion_type(CompletionType::List)
        .max_history_size(10_000)?
        .history_ignore_space(true)
        .build();
    let mut editor: Editor<Assistant, FileHistory> = Editor::with_config(editing)?;
    editor.set_helper(Some(Assistant { session: &session }));
    let history = config::state_folder().map(|folder| folder.join("history"));
    if let Some(path) = &history {
        // The first time there is none; and a shell without history is better than none.
        let _ = path.parent().map(std::fs::create_dir_all);
        let _ = editor.load_history(path);
    }
    output::tell(format_args!(
        "flarelake {}: {}; \\? for help",
        env!("CARGO_PKG_VERSION"),
        settings.config.lake()?
    ));
    let mut shown = Shown { format: FormatName::Table, expanded: None, timing: false };
    loop {
        let line = match tokio::task::block_in_place(|| editor.readline("flarelake> ")) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        };
        let text = line.trim();
        if text.is_empty() {
            continue;
        }
        let _ = editor.add_history_entry(text);
        if let Some(path) = &history {
            let _ = editor.append_history(path);
        }
        match shown.answer(&session, text).await {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => output::tell(format_args!("error: {}", printable(&format!("{error:#}")))),
        }
    }
    Ok(End::Done)
}

impl Shown {
    /// False: that was the last one.
    async fn answer(&mut self, session: &Session, text: &str) -> anyhow::Result<bool> {
        let mut words = text.split_whitespace();
        match (words.next().unwrap_or_default(), words.next()) {
            ("\\q" | "quit" | "exit", _) => return Ok(false),
            ("\\?" | "\\h" | "help", _) => output::say(HELP)?,
            ("\\l", _) => output::say(listing(&built_in()))?,
            ("\\d" | "\\dt", None) => self.ask(session, TABLES, &[]).await?,
            ("\\d", Some(table)) => output::say(described(session, table).await?)?,
            ("\\run", Some(name)) => {
                let saved = saved(name)?;
                let given: Vec<(String, String)> = words
                    .filter_map(|w| w.split_once('='))
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect();
                let values = saved.arguments(&given)?;
                self.ask(session, &saved.sql, &values).await?;
            }
            ("\\timing", to) => self.timing = to.map_or(!self.timing, |to| to == "on"),
            ("\\x", to) => {
                self.expanded = match to {
                    Some("on") => Some(Expanded::On),
                    Some("off") => Some(Expanded::Off),
                    Some("auto") => None,
                    _ => {
                        if self.expanded == Some(Expanded::On) {
                            None
                        } else {
                            Some(Expanded::On)
                        }
                    }
                }
            }
            ("\\f", Some(name)) => {
                let format = FormatName::from_str(name, true).ok().filter(|f| *f != FormatName::Parquet);
                self.format = format.ok_or_else(|| anyhow::anyhow!("{name}: table, csv, json or ndjson"))?;
            }
            (word, _) if word.starts_with('\\') => {
                anyhow::bail!("{word} is no command of this shell; \\? lists them")
            }
            _ => {
                for statement in split(text) {
                    self.ask(session, &statement, &[]).await?;
                }
            }
        }
        Ok(true)
    }

    /// Shows a statement's result; Ctrl-C cancels it.
    async fn ask(&self, session: &Session, sql: &str, values: &[(String, Value)]) -> anyhow::Result<()> {
        let began = clock::now();
        let format = self.format.format(self.expanded.unwrap_or_else(by_width));
        let mut pager = Pager::start();
        let to: Box<dyn Write + Send> = match pager.input() {
            Some(input) => Box::new(BufWriter::new(input)),
            None => Box::new(output::stdout()),
        };
        let asked = tokio::select! {
            asked = print(session, sql, values, format, to) => asked,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("cancelled")),
        };
        let told = pager.wait();
        match asked {
            // The pager was left before the end.
            Err(error)
                if told
                    && error
                        .downcast_ref::<io::Error>()
                        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {}
            other => other?,
        }
        if self.timing {
            output::say(format_args!("Time: {} ms\n", began.elapsed().as_millis()))?;
        }
        Ok(())
    }
}

async fn described(session: &Session, table: &str) -> anyhow::Result<String> {
    let name = table.trim_end_matches(';').rsplit('.').next().unwrap_or(table).to_lowercase();
    let Some(columns) = session.columns(&name).await else {
        // The planner's own words for it.
        session.query(&format!("SELECT 1 FROM {name}"), &[]).await?;
        anyhow::bail!("there is no table {table}");
    };
    let longest = columns.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    Ok(columns.iter().map(|(name, kind)| format!("{name:longest$}  {kind}\n")).collect())
}

/// What long results are read in: `$PAGER`, or less, which steps back where a screen is enough.
struct Pager(Option<Child>);

impl Pager {
    fn start() -> Self {
        let terminal = std::io::IsTerminal::is_terminal(&io::stdout());
        let command = config::pager().unwrap_or_else(|| "less -SFRX".to_owned());
        if !terminal || command.is_empty() || command == "cat" {
            return Self(None);
        }
        // Whether there is such a program, the shell knows; without one, `cat` shows it all the same.
        let command = format!(
            "command -v {} >/dev/null && exec {command} || exec cat",
            command.split_whitespace().next().unwrap_or_default()
        );
        Self(Command::new("sh").args(["-c", &command]).stdin(Stdio::piped()).spawn().ok())
    }

    fn input(&mut self) -> Option<std::process::ChildStdin> {
        self.0.as_mut()?.stdin.take()
    }

    /// Until the person has read it. Whether there was a pager.
    fn wait(mut self) -> bool {
        let Some(child) = self.0.as_mut() else { return false };
        let _ = tokio::task::block_in_place(|| child.wait());
        true
    }
}
