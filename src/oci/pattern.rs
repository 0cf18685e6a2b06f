//! Patterns of names, as operators write them in the configuration and in commands.

use std::fmt;

use super::{RepoName, Tag};

/// The longest pattern, in bytes: longer than any stored name and tag together.
pub const MAX_PATTERN: usize = 1024;

/// A pattern of stored repository names (those of a named upstream begin with its name), or of
/// tags.
///
/// `*` matches any characters (or none) within one component; `**` also matches across slashes. Every
/// other character matches itself, and the whole name must match: `library/*` matches
/// `library/debian` but not `library/a/b`; `ghcr.io/**` matches everything of that upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

/// Why a text is not a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("a pattern is 1 to {MAX_PATTERN} bytes long")]
    Length,
    #[error(
        "a pattern is made of what names and tags are made of (letters, digits, '.', '_', '-', \
         '/'), and of * and **"
    )]
    Character,
}

impl std::str::FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() || text.len() > MAX_PATTERN {
            return Err(PatternError::Length);
        }
        let known = |byte: u8| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/' | b'*')
        };
        if text.bytes().all(known) {
            Ok(Self(text.to_owned()))
        } else {
            Err(PatternError::Character)
        }
    }
}

impl Pattern {
    /// A pattern of users' names, which may have more characters than names of repositories: `*` and
    /// `**` mean the same. None for an empty or too long text, and for one with blanks or control
    /// characters.
    pub fn of_users(text: &str) -> Option<Self> {
        let printable = |c: char| !c.is_whitespace() && !c.is_control();
        let valid = (1..=MAX_PATTERN).contains(&text.len()) && text.chars().all(printable);
        valid.then(|| Self(text.to_owned()))
    }

    /// Whether the pattern is `**`, which matches every name.
    pub fn is_everything(&self) -> bool {
        self.0 == "**"
    }

    /// The one name that the pattern matches; none if it has a `*`.
    pub fn literal(&self) -> Option<&str> {
        (!self.0.contains('*')).then_some(self.0.as_str())
    }

    /// The components before the first one with a `*`: all names that match are this one, or below it.
    pub fn directory(&self) -> &str {
        match self.0.split_once('*') {
            None => &self.0,
            Some((before, _)) => before
                .rsplit_once('/')
                .map_or("", |(directory, _)| directory),
        }
    }

    /// Whether the pattern matches the whole name. The number of steps is at most the product of the
    /// two lengths.
    pub fn matches(&self, name: &str) -> bool {
        if let Some(literal) = self.literal() {
            return literal == name;
        }
        let name = name.as_bytes();
        // reached[n]: what has been read of the pattern so far matches the first n bytes.
        let mut reached = vec![false; name.len() + 1];
        if let Some(start) = reached.first_mut() {
            *start = true;
        }
        let mut rest = self.0.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            let is_star = *first == b'*';
            let across = is_star && after.first() == Some(&b'*');
            rest = after.get(usize::from(across)..).unwrap_or_default();
            // Of the previous slot: the new value for a star, else the old one.
            let mut previous = false;
            let bytes = std::iter::once(None).chain(name.iter().map(Some));
            for (slot, byte) in reached.iter_mut().zip(bytes) {
                let old = *slot;
                *slot = if is_star {
                    old || (previous && (across || byte != Some(&b'/')))
                } else {
                    previous && byte == Some(first)
                };
                previous = if is_star { *slot } else { old };
            }
        }
        reached.last() == Some(&true)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A pattern of images: `repository`, or `repository:tag` with a pattern for each part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePattern {
    repo: Pattern,
    tag: Option<Pattern>,
}

impl std::str::FromStr for ImagePattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (repo, tag) = match text.split_once(':') {
            Some((repo, tag)) => (repo, Some(tag.parse()?)),
            None => (text, None),
        };
        Ok(Self {
            repo: repo.parse()?,
            tag,
        })
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repo.fmt(f)?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

impl ImagePattern {
    /// Whether it names the whole repository, and not some of its tags.
    pub fn is_repository(&self, repo: &RepoName) -> bool {
        self.tag.is_none() && self.repo.matches(repo.as_str())
    }

    /// Whether it names the tag, or the whole repository.
    pub fn names(&self, repo: &RepoName, tag: &Tag) -> bool {
        self.is_repository(repo) || self.is_tag(repo, tag)
    }

    /// The one tag that it names, if it has no wildcard.
    pub fn exact(&self) -> Option<(RepoName, Tag)> {
        let Pattern(repo) = &self.repo;
        let Pattern(tag) = self.tag.as_ref()?;
        let is_exact = !repo.contains('*') && !tag.contains('*');
        let repo = repo.parse().ok().filter(|_| is_exact)?;
        Some((repo, tag.parse().ok()?))
    }

    /// Whether it names the tag, and not the whole repository.
    pub fn is_tag(&self, repo: &RepoName, tag: &Tag) -> bool {
        let tag_matches = |pattern: &Pattern| pattern.matches(tag.as_str());
        self.tag.as_ref().is_some_and(tag_matches) && self.repo.matches(repo.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_star_stays_in_a_component_and_two_cross_slashes() {
        for (pattern, name, expected) in [
            ("library/debian", "library/debian", true),
            ("library/debian", "library/debian2", false),
            ("library/*", "library/debian", true),
            ("library/*", "library/a/b", false),
            ("library/*", "library", false),
            ("*/debian", "library/debian", true),
            ("*", "a/b", false),
            ("**", "a/b/c", true),
            ("ghcr.io/**", "ghcr.io/owner/app", true),
            ("ghcr.io/**", "ghcr.io", false),
            ("**/app", "ghcr.io/owner/app", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abcd", false),
            ("**a**", "xxaxx/y", true),
            ("***", "a/b", true),
            ("1.*", "1.25-alpine", true),
            ("1.*", "12", false),
        ] {
            let parsed: Pattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(name), expected, "{pattern} {name}");
            let rest = name.strip_prefix(parsed.directory());
            let is_below = rest.is_some_and(|rest| {
                parsed.directory().is_empty() || rest.is_empty() || rest.starts_with('/')
            });
            assert!(is_below || !expected, "{pattern} {name}");
        }
        assert_eq!("".parse::<Pattern>(), Err(PatternError::Length));
        assert_eq!("[a-z]".parse::<Pattern>(), Err(PatternError::Character));
    }

    #[test]
    fn an_image_pattern_is_a_repository_or_a_tag() {
        let repo: RepoName = "library/debian".parse().unwrap();
        let tag: Tag = "bookworm-slim".parse().unwrap();
        let image = |text: &str| text.parse::<ImagePattern>().unwrap();
        let whole = image("library/*");
        assert!(whole.is_repository(&repo) && !whole.is_tag(&repo, &tag));
        let tagged = image("library/debian:bookworm*");
        assert!(!tagged.is_repository(&repo) && tagged.is_tag(&repo, &tag));
        assert!(!image("library/debian:trixie").is_tag(&repo, &tag));
        assert!(whole.names(&repo, &tag) && tagged.names(&repo, &tag));
        let exact = image("library/debian:bookworm-slim").exact();
        assert_eq!(exact, Some((repo, tag)));
        for text in ["library/debian", "library/*:1", "library/debian:1*"] {
            assert_eq!(image(text).exact(), None, "{text}");
        }
        for text in ["library/*", "library/debian:bookworm*"] {
            assert_eq!(image(text).to_string(), text);
        }
        for text in ["a:", ":a", "a:b:c", ""] {
            assert!(text.parse::<ImagePattern>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn many_stars_match_in_bounded_time() {
        let pattern: Pattern = "*a".repeat(500).parse().unwrap();
        assert!(!pattern.matches(&"a".repeat(499)));
        assert!(pattern.matches(&"a".repeat(500)));
    }

    proptest! {
        #[test]
        fn agrees_with_a_recursive_matcher(pattern in "[ab/*]{1,8}", name in "[ab/]{0,10}") {
            let parsed: Pattern = pattern.parse().unwrap();
            prop_assert_eq!(parsed.matches(&name), recursive(pattern.as_bytes(), name.as_bytes()));
        }
    }

    fn recursive(pattern: &[u8], name: &[u8]) -> bool {
        match pattern {
            [] => name.is_empty(),
            [b'*', b'*', rest @ ..] => (0..=name.len()).any(|n| recursive(rest, &name[n..])),
            [b'*', rest @ ..] => (0..=name.len())
                .take_while(|n| !name[..*n].contains(&b'/'))
                .any(|n| recursive(rest, &name[n..])),
            [first, rest @ ..] => name.first() == Some(first) && recursive(rest, &name[1..]),
        }
    }
}
