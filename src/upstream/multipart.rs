//! Reads a `multipart/byteranges` body (RFC 9110, section 14.6) as it arrives. Pure.
//!
//! The length of a part comes from its own Content-Range, and the delimiter has to follow right
//! there: a boundary inside of the content means nothing. Each part has to begin and end where
//! requested ranges do, and no range comes twice, so there are at most as many parts as ranges. What
//! isn't content is bounded: the preamble, the header section of a part, and the unrequested bytes
//! between ranges that the server has joined.

use bytes::Bytes;

use super::content_range::ContentRange;
use crate::oci::ByteRange;

/// Bytes of the preamble, and of each part's header section, at most.
const MAX_TEXT: usize = 4096;
/// Bytes of a boundary at most (RFC 2046, section 5.1.1).
const MAX_BOUNDARY: usize = 70;
/// Unrequested bytes at most, over all parts, between ranges that the server has joined.
const MAX_GAPS: u64 = 1024 * 1024;

/// What is wrong with a `multipart/byteranges` body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MultipartError {
    #[error("its boundary is missing or malformed")]
    Boundary,
    #[error("its preamble is longer than {MAX_TEXT} bytes")]
    Preamble,
    #[error("no delimiter where a part has to end")]
    Delimiter,
    #[error("the header section of a part is malformed")]
    Head,
    #[error("it has no parts")]
    Empty,
    #[error("it ends without its closing delimiter")]
    Unterminated,
    #[error("a part is not made of requested ranges that have yet to come")]
    Range,
}

/// Takes the body in pieces of any size and yields the requested bytes, with their offsets.
#[derive(Debug)]
pub(super) struct Parser {
    /// `--` and the boundary; none where the body is a single part.
    delimiter: Option<Vec<u8>>,
    ranges: Ranges,
    state: ParserState,
    /// The part of the body that was pushed last, as far as it isn't parsed yet.
    input: Bytes,
    /// A line that isn't complete yet.
    line: Vec<u8>,
    /// Bytes of the present preamble or header section.
    text: usize,
}

#[derive(Debug)]
enum ParserState {
    /// Before the first delimiter.
    Preamble,
    /// Behind the content of a part, before its line break.
    PartEnd,
    /// At a delimiter.
    Delimiter,
    /// In the header section of a part.
    Head(Option<ContentRange>),
    /// In the content of a part.
    Content { at: u64, end: u64 },
    /// Behind the closing delimiter.
    Done,
}

impl Parser {
    /// `ranges` are what was requested: in ascending order, without overlap, and within the blob's
    /// `total` bytes.
    pub(super) fn new(boundary: &[u8], ranges: &[ByteRange], total: u64) -> Self {
        Self {
            delimiter: Some([b"--", boundary].concat()),
            ranges: Ranges::new(ranges, total),
            state: ParserState::Preamble,
            input: Bytes::new(),
            line: Vec::new(),
            text: 0,
        }
    }

    /// The body of a response that is a single range although several were requested. None when it
    /// isn't made of those.
    pub(super) fn single(range: ContentRange, ranges: &[ByteRange], total: u64) -> Option<Self> {
        let mut parser = Self {
            delimiter: None,
            ..Self::new(b"", ranges, total)
        };
        parser.take(range).ok()?;
        Some(parser)
    }

    /// Gives the parser the next piece of the body, once [`next`](Self::next) has returned `None`.
    pub(super) fn push(&mut self, input: Bytes) {
        self.input = input;
    }

    /// The next requested bytes; none when more of the body is needed, and when it
    /// [`is_done`](Self::is_done).
    pub(super) fn next(&mut self) -> Result<Option<(u64, Bytes)>, MultipartError> {
        loop {
            match self.state {
                ParserState::Done => return Ok(None),
                ParserState::Content { at, end } if at >= end => {
                    self.state = if self.delimiter.is_some() {
                        ParserState::PartEnd
                    } else {
                        ParserState::Done
                    };
                }
                ParserState::Content { at, end } => {
                    if self.input.is_empty() {
                        return Ok(None);
                    }
                    if let Some(content) = self.content(at, end) {
                        return Ok(Some(content));
                    }
                }
                ParserState::Preamble
                | ParserState::PartEnd
                | ParserState::Delimiter
                | ParserState::Head(_) => {
                    if !self.read_line()? {
                        return Ok(None);
                    }
                    let line = std::mem::take(&mut self.line);
                    self.on_line(&line)?;
                }
            }
        }
    }

    /// Whether the closing delimiter has been read.
    pub(super) const fn is_done(&self) -> bool {
        matches!(self.state, ParserState::Done)
    }

    /// Whether all requested ranges have come.
    pub(super) fn is_complete(&self) -> bool {
        self.ranges.open.iter().all(|(_, is_open)| !is_open)
    }

    /// The body has ended. The line break behind the closing delimiter may be missing.
    pub(super) fn finish(&mut self) -> Result<(), MultipartError> {
        if matches!(self.state, ParserState::Delimiter | ParserState::Preamble)
            && !self.line.is_empty()
        {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(b"\r\n");
            self.on_line(&line)?;
        }
        match self.state {
            ParserState::Done => Ok(()),
            ParserState::Content { at, end } if at >= end && self.delimiter.is_none() => Ok(()),
            _ => Err(MultipartError::Unterminated),
        }
    }

    /// Takes content from the input: requested bytes, or none where it only skips others.
    fn content(&mut self, at: u64, end: u64) -> Option<(u64, Bytes)> {
        let (until, wanted) = self.ranges.stretch(at, end);
        let length = usize::try_from(until - at).unwrap_or(usize::MAX);
        let content = self.input.split_to(length.min(self.input.len()));
        self.state = ParserState::Content {
            at: at + content.len() as u64,
            end,
        };
        wanted.then_some((at, content))
    }

    /// Moves input to the line, up to a line break. False when the input ends before that.
    fn read_line(&mut self) -> Result<bool, MultipartError> {
        let found = self.input.iter().position(|byte| *byte == b'\n');
        let length = found.map_or(self.input.len(), |at| at + 1);
        self.text = self.text.saturating_add(length);
        if self.text > MAX_TEXT {
            return Err(match self.state {
                ParserState::Preamble => MultipartError::Preamble,
                ParserState::Head(_) => MultipartError::Head,
                _ => MultipartError::Delimiter,
            });
        }
        self.line.extend_from_slice(&self.input.split_to(length));
        Ok(found.is_some())
    }

    fn on_line(&mut self, line: &[u8]) -> Result<(), MultipartError> {
        let content = line.strip_suffix(b"\r\n");
        match self.state {
            ParserState::Preamble => {
                let delimiter = self.delimiter.as_deref().unwrap_or_default();
                if let Some(line) = content.filter(|line| line.starts_with(delimiter)) {
                    self.on_delimiter(line)?;
                }
            }
            ParserState::PartEnd if content == Some(b"") => self.state = ParserState::Delimiter,
            ParserState::Delimiter => self.on_delimiter(content.unwrap_or_default())?,
            ParserState::Head(found) => {
                let line = content.ok_or(MultipartError::Head)?;
                self.on_header(line, found)?;
            }
            ParserState::PartEnd | ParserState::Content { .. } | ParserState::Done => {
                return Err(MultipartError::Delimiter);
            }
        }
        Ok(())
    }

    /// Goes on to the content of a part.
    fn take(&mut self, range: ContentRange) -> Result<(), MultipartError> {
        let ByteRange { start, end } = self.ranges.take(range).ok_or(MultipartError::Range)?;
        self.state = ParserState::Content { at: start, end };
        Ok(())
    }

    /// A line that has to be a delimiter: blanks may follow it.
    fn on_delimiter(&mut self, line: &[u8]) -> Result<(), MultipartError> {
        let delimiter = self.delimiter.as_deref().unwrap_or_default();
        let rest = line.strip_prefix(delimiter);
        let rest = rest.ok_or(MultipartError::Delimiter)?;
        self.text = 0;
        self.state = match rest.trim_ascii_end() {
            b"" => ParserState::Head(None),
            b"--" if self.ranges.is_untouched() => return Err(MultipartError::Empty),
            b"--" => ParserState::Done,
            _ => return Err(MultipartError::Delimiter),
        };
        Ok(())
    }

    /// A header line of a part, or the empty line behind the last one.
    fn on_header(
        &mut self,
        line: &[u8],
        found: Option<ContentRange>,
    ) -> Result<(), MultipartError> {
        if line.is_empty() {
            self.text = 0;
            return self.take(found.ok_or(MultipartError::Head)?);
        }
        let line = std::str::from_utf8(line).map_err(|_not_text| MultipartError::Head)?;
        let (name, value) = line.split_once(':').ok_or(MultipartError::Head)?;
        if name.is_empty() || name.contains(|c: char| !c.is_ascii_graphic()) {
            return Err(MultipartError::Head);
        }
        if name.eq_ignore_ascii_case("content-range") {
            let range = ContentRange::parse(value).filter(|_| found.is_none());
            let range = range.ok_or(MultipartError::Range)?;
            self.state = ParserState::Head(Some(range));
        }
        Ok(())
    }
}

/// The requested ranges.
#[derive(Debug)]
struct Ranges {
    /// In ascending order, each with whether it has yet to come.
    open: Vec<(ByteRange, bool)>,
    total: u64,
    /// Unrequested bytes that may still come.
    gaps: u64,
}

impl Ranges {
    fn new(ranges: &[ByteRange], total: u64) -> Self {
        Self {
            open: ranges.iter().map(|range| (*range, true)).collect(),
            total,
            gaps: MAX_GAPS,
        }
    }

    fn is_untouched(&self) -> bool {
        self.open.iter().all(|(_, is_open)| *is_open)
    }

    /// Takes the ranges that a part consists of: those that it begins and ends with, and all between
    /// them. None when it isn't made of ranges that have yet to come.
    fn take(&mut self, part: ContentRange) -> Option<ByteRange> {
        if part.total.is_some_and(|total| total != self.total) {
            return None;
        }
        let ContentRange { first, last, .. } = part;
        let from = self.open.binary_search_by_key(&first, |(r, _)| r.start);
        let to = self.open.binary_search_by_key(&last, |(r, _)| r.end - 1);
        let ranges = self.open.get_mut(from.ok()?..=to.ok()?)?;
        let requested: u64 = ranges.iter().map(|(range, _)| range.len()).sum();
        let gaps = part.len().checked_sub(requested)?;
        if gaps > self.gaps || !ranges.iter().all(|(_, is_open)| *is_open) {
            return None;
        }
        self.gaps -= gaps;
        for (_, is_open) in ranges {
            *is_open = false;
        }
        let (start, end) = (first, last + 1);
        Some(ByteRange { start, end })
    }

    /// How far the bytes from `at` on, of a part that ends at `end`, are all requested or all not.
    fn stretch(&self, at: u64, end: u64) -> (u64, bool) {
        let next = self.open.partition_point(|(range, _)| range.end <= at);
        match self.open.get(next) {
            Some((range, _)) if range.start <= at => (range.end.min(end), true),
            Some((range, _)) => (range.start.min(end), false),
            None => (end, false),
        }
    }
}

/// The boundary of a `Content-Type: multipart/byteranges`; none when it is another type.
pub(super) fn boundary(content_type: &str) -> Option<Result<&str, MultipartError>> {
    let (kind, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
    if !kind.trim().eq_ignore_ascii_case("multipart/byteranges") {
        return None;
    }
    let mut parameters = parameters
        .split(';')
        .filter_map(|text| text.split_once('='));
    let boundary = parameters.find(|(name, _)| name.trim().eq_ignore_ascii_case("boundary"));
    let boundary = boundary.map(|(_, value)| {
        let value = value.trim();
        let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
        quoted.unwrap_or(value)
    });
    let boundary = boundary.filter(|boundary| is_boundary(boundary.as_bytes()));
    Some(boundary.ok_or(MultipartError::Boundary))
}

/// RFC 2046, section 5.1.1.
fn is_boundary(text: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(byte);
    (1..=MAX_BOUNDARY).contains(&text.len()) && text.iter().all(allowed) && !text.ends_with(b" ")
}

#[cfg(test)]
#[path = "tests/multipart.rs"]
mod tests;
