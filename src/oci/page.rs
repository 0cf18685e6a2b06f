//! Pages of sorted lists (distribution-spec 1.1, "Listing Tags").

/// The most entries that one page of a list holds.
pub const MAX_PAGE: usize = 1000;

/// `n` and `last` of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// The requested number of entries; a page has at most [`MAX_PAGE`].
    pub n: Option<usize>,
    /// The page starts after this entry.
    pub last: Option<String>,
}

impl Page {
    /// The most entries of the page.
    pub fn length(&self) -> usize {
        self.n.unwrap_or(MAX_PAGE).min(MAX_PAGE)
    }

    /// The entries of a sorted list from the page on.
    pub fn after<'a, T>(&self, all: &'a [T], name: impl Fn(&T) -> &str) -> &'a [T] {
        let start = match self.last.as_deref() {
            Some(last) => all.partition_point(|entry| name(entry) <= last),
            None => 0,
        };
        all.get(start..).unwrap_or_default()
    }

    /// The page of a sorted list, and whether more follow.
    pub fn of<T: Clone>(&self, all: &[T], name: impl Fn(&T) -> &str) -> (Vec<T>, bool) {
        let n = self.length();
        let rest = self.after(all, name);
        let entries = rest.iter().take(n).cloned().collect();
        (entries, n > 0 && rest.len() > n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Tag;

    #[test]
    fn pages() {
        let all = ["a", "b", "c"].map(|tag| tag.parse::<Tag>().unwrap());
        let page = |n, last: Option<&str>| {
            let page = Page {
                n,
                last: last.map(str::to_owned),
            };
            let (tags, more) = page.of(&all, Tag::as_str);
            (
                tags.iter().map(Tag::to_string).collect::<Vec<_>>().concat(),
                more,
            )
        };
        assert_eq!(page(None, None), ("abc".into(), false));
        assert_eq!(page(Some(2), None), ("ab".into(), true));
        assert_eq!(page(Some(2), Some("b")), ("c".into(), false));
        assert_eq!(page(Some(1), Some("aa")), ("b".into(), true));
        assert_eq!(page(Some(0), None), (String::new(), false));
        assert_eq!(page(None, Some("z")), (String::new(), false));
    }

    #[test]
    fn a_page_has_at_most_a_thousand_entries() {
        let all: Vec<Tag> = (0..2_500)
            .map(|n| format!("t{n:04}").parse().unwrap())
            .collect();
        for n in [None, Some(1_000), Some(usize::MAX)] {
            let mut last = None;
            for (length, more) in [(1_000, true), (1_000, true), (500, false)] {
                let (tags, follows) = Page { n, last }.of(&all, Tag::as_str);
                assert_eq!((tags.len(), follows), (length, more));
                last = tags.last().map(Tag::to_string);
            }
        }
    }
}
