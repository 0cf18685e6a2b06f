//! The choice of images to evict when space is short: the least recently used ones, whole.

/// Images looked at in one step.
const MAX_SCAN: usize = 512;

/// What the choice needs to know of the images.
pub(in crate::cache) trait Images {
    type Id: Copy;

    /// Takes out the image that comes first in the LRU order, with its time there, in milliseconds.
    fn pop_oldest(&mut self) -> Option<(Self::Id, u64)>;
    fn put_back(&mut self, image: Self::Id, last_use: u64);
    /// In milliseconds. Uses don't move an image in the order, so it may be later than its place.
    fn last_use(&self, image: Self::Id) -> u64;
    /// The blobs that are removed with an image, with their bytes; none while it is pinned or anything of it
    /// is in use.
    fn evictable(&self, image: Self::Id) -> Option<Vec<(Self::Id, u64)>>;
}

/// What one step chose.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cache) struct Victims<Id> {
    pub(in crate::cache) blobs: Vec<Id>,
    /// Images that were looked at.
    pub(in crate::cache) looked_at: usize,
}

/// Chooses images of at least `need` bytes, as far as one step gets. They are out of the order then.
pub(in crate::cache) fn choose_victims<I: Images>(
    images: &mut I,
    need: u64,
    now: u64,
) -> Victims<I::Id> {
    let (mut blobs, mut bytes, mut looked_at) = (Vec::new(), 0, 0);
    let mut kept = Vec::new();
    while bytes < need
        && looked_at < MAX_SCAN
        && let Some((image, place)) = images.pop_oldest()
    {
        looked_at += 1;
        let used = images.last_use(image);
        if used > place {
            images.put_back(image, used);
        } else if let Some(members) = images.evictable(image) {
            for (blob, size) in members {
                blobs.push(blob);
                bytes += size;
            }
        } else {
            kept.push(image);
        }
    }
    // To be looked at again when everything else has been.
    for image in kept {
        images.put_back(image, now);
    }
    Victims { blobs, looked_at }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[derive(Default)]
    struct Fake {
        order: BTreeSet<(u64, u32)>,
        uses: BTreeMap<u32, u64>,
        pinned: u32,
    }

    impl Images for Fake {
        type Id = u32;

        fn pop_oldest(&mut self) -> Option<(u32, u64)> {
            self.order.pop_first().map(|(at, image)| (image, at))
        }

        fn put_back(&mut self, image: u32, last_use: u64) {
            self.order.insert((last_use, image));
        }

        fn last_use(&self, image: u32) -> u64 {
            self.uses[&image]
        }

        fn evictable(&self, image: u32) -> Option<Vec<(u32, u64)>> {
            (image != self.pinned).then(|| vec![(image, 10), (image + 100, 5)])
        }
    }

    #[test]
    fn whole_images_go_in_the_order_of_their_true_uses() {
        let mut images = Fake {
            pinned: 2,
            ..Fake::default()
        };
        // Image 1 was used again after it was put into the order.
        for (image, place, used) in [(1, 10, 60), (2, 20, 20), (3, 30, 30), (4, 40, 40)] {
            images.put_back(image, place);
            images.uses.insert(image, used);
        }
        let victims = choose_victims(&mut images, 16, 100);
        assert_eq!(victims.blobs, [3, 103, 4, 104]);
        assert_eq!(victims.looked_at, 4);
        assert_eq!(images.order, BTreeSet::from([(60, 1), (100, 2)]));
        assert_eq!(choose_victims(&mut images, 1, 110).blobs, [1, 101]);
        assert!(choose_victims(&mut images, 1, 120).blobs.is_empty());
    }
}
