//! Suggests a known name for an unknown one.

/// How alike two names must be.
const LIKENESS: f64 = 0.75;

/// The one of `known` that is most like `name`, whatever the case; none if none is like it.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    let likeness = |known: &str| strsim::jaro_winkler(&known.to_lowercase(), &lower);
    let like = known.into_iter().map(|known| (likeness(known), known));
    let (best, known) = like.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (best > LIKENESS).then_some(known)
}
