//! Bundles are read as they were written, and bad ones are refused.

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::plan::{self, BundledImage};
use super::reader::BundleReader;
use super::writer::BundleWriter;
use super::*;
use crate::oci::manifest::media_type;
use crate::oci::{Algorithm, Descriptor, Manifest};

fn digest(content: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, content)
}

/// A manifest with a config, a layer, and perhaps a subject.
fn manifest(layer: &[u8], subject: Option<&[u8]>) -> Vec<u8> {
    let descriptor = |content: &[u8]| json!({"mediaType": "x/y", "digest": digest(content), "size": content.len()});
    let mut document = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": descriptor(b"{}"),
        "layers": [descriptor(layer)],
    });
    if let Some(subject) = subject {
        document["subject"] = descriptor(subject);
    }
    document.to_string().into_bytes()
}

fn entry(content: &[u8], name: Option<&str>) -> Descriptor {
    let parsed = Manifest::parse(content).unwrap();
    let mut entry = parsed.descriptor(digest(content), content.len() as u64);
    if let Some(name) = name {
        entry
            .annotations
            .insert(REF_NAME.to_owned(), name.to_owned());
    }
    entry
}

fn write(
    path: &Path,
    max: Option<u64>,
    entries: &[Descriptor],
    contents: &[&[u8]],
) -> Result<Vec<PathBuf>, BundleError> {
    let mut writer = BundleWriter::create(path, max, entries)?;
    for content in contents {
        assert!(writer.add(&digest(content), content.len() as u64, *content)?);
        assert!(!writer.add(&digest(content), content.len() as u64, *content)?);
    }
    writer.finish()
}

#[test]
fn a_bundle_is_read_as_it_was_written_whole_and_split() {
    let directory = tempfile::tempdir().unwrap();
    let layer = vec![7; 100_000];
    let image = manifest(&layer, None);
    let signature = manifest(b"signature", Some(&image));
    let entries = [
        entry(&image, Some("docker.io/library/a:1")),
        entry(&signature, None),
    ];
    for (name, max, files) in [("whole", None, 1), ("split", Some(30_000), 4)] {
        let path = directory.path().join(name);
        let contents: [&[u8]; 5] = [&image, &signature, b"{}", &layer, b"signature"];
        let written = write(&path, max, &entries, &contents).unwrap();
        assert_eq!(written.len(), files);
        let sums = std::fs::read_to_string(path.with_extension("sha256")).unwrap();
        for (line, file) in sums.lines().zip(&written) {
            let sum = digest(&std::fs::read(file).unwrap()).hex();
            let name = file.file_name().unwrap().to_str().unwrap();
            assert_eq!(line, format!("{sum}  {name}"));
        }
        for start in [&path, &written[0]] {
            let reader = BundleReader::open(start).unwrap();
            assert_eq!(reader.blobs().count(), 5);
            assert_eq!(reader.size(&digest(&layer)), Some(100_000));
            let extents = reader.extents(&digest(&layer)).unwrap();
            let bytes = extents.iter().flat_map(|extent| {
                let mut bytes = vec![0; usize::try_from(extent.length).unwrap()];
                extent
                    .file
                    .read_exact_at(&mut bytes, extent.offset)
                    .unwrap();
                bytes
            });
            assert!(bytes.eq(layer.iter().copied()));
            let images = plan::images(&reader, None).unwrap();
            let expected = BundledImage {
                name: "docker.io/library/a:1".to_owned(),
                root: digest(&image),
                manifests: vec![digest(&signature), digest(&image)],
                blobs: images[0].blobs.clone(),
            };
            assert_eq!(images, [expected]);
            let blobs = images[0].blobs.iter().map(|blob| blob.digest);
            let expected: [&[u8]; 3] = [b"{}", &layer, b"signature"];
            assert_eq!(blobs.collect::<Vec<_>>(), expected.map(digest));
        }
    }
}

#[test]
fn images_of_dockers_types_have_a_second_entry_that_is_not_imported() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle");
    let image = String::from_utf8(manifest(b"layer", None)).unwrap();
    let image = image.replace(media_type::OCI_MANIFEST, media_type::DOCKER_MANIFEST);
    let child = json!({"mediaType": media_type::DOCKER_MANIFEST, "digest": digest(image.as_bytes()), "size": image.len()});
    let list =
        json!({"schemaVersion": 2, "mediaType": media_type::DOCKER_LIST, "manifests": [child]});
    for root in [image.clone(), list.to_string()] {
        let named = entry(root.as_bytes(), Some("a/b:1"));
        let (mut second, index) = stand_in::stand_in(&named, root.as_bytes()).unwrap();
        assert_eq!(second.media_type, media_type::OCI_INDEX);
        let children = Manifest::parse(&index).unwrap().manifests;
        assert_eq!(children[0].digest, digest(image.as_bytes()));
        second.annotations.extend(named.annotations.clone());
        let root = root.as_bytes();
        let contents: Vec<&[u8]> = if root == image.as_bytes() {
            vec![root, &index]
        } else {
            vec![root, &index, image.as_bytes()]
        };
        write(&path, None, &[named, second], &contents).unwrap();
        let reader = BundleReader::open(&path).unwrap();
        let images = plan::images(&reader, None).unwrap();
        assert_eq!(images.len(), 1);
        assert_eq!(images[0].root, digest(root));
    }
    let oci = manifest(b"layer", None);
    assert!(stand_in::stand_in(&entry(&oci, None), &oci).is_none());
}

#[test]
fn what_is_not_finished_or_wrong_leaves_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle");
    drop(BundleWriter::create(&path, None, &[]).unwrap());
    for (size, content) in [(3, b"abc"), (2, b"abc"), (4, b"abc")] {
        let mut writer = BundleWriter::create(&path, Some(1000), &[]).unwrap();
        assert!(writer.add(&digest(b"xyz"), size, &content[..]).is_err());
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn an_image_without_a_name_gets_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle");
    let image = manifest(b"layer", None);
    // A tag alone is no name.
    for name in [None, Some("1.0")] {
        write(&path, None, &[entry(&image, name)], &[&image]).unwrap();
        let reader = BundleReader::open(&path).unwrap();
        let error = plan::images(&reader, None).unwrap_err().to_string();
        assert!(error.contains("--name"), "{error}");
        let images = plan::images(&reader, Some("a:1")).unwrap();
        assert_eq!(images[0].name, "a:1");
    }
    let missing = [entry(&manifest(b"other", None), Some("a/b"))];
    write(&path, None, &missing, &[&image]).unwrap();
    let reader = BundleReader::open(&path).unwrap();
    let error = plan::images(&reader, None).unwrap_err();
    assert!(matches!(error, BundleError::Missing { .. }), "{error}");
}

/// An archive with these files.
fn archive(path: &Path, files: &[(&str, &[u8])]) {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        // As it is, whatever it leads to.
        let field = &mut header.as_old_mut().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, *content).unwrap();
    }
    std::fs::write(path, tar.into_inner().unwrap()).unwrap();
}

#[test]
fn bad_archives_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle");
    let layout = ("oci-layout", LAYOUT.as_bytes());
    let index: (&str, &[u8]) = ("index.json", br#"{"schemaVersion":2,"manifests":[]}"#);
    archive(
        &path,
        &[
            layout,
            index,
            ("../../etc/passwd", b"x"),
            ("/blobs/sha256/x", b""),
        ],
    );
    assert_eq!(BundleReader::open(&path).unwrap().blobs().count(), 0);
    let huge = vec![b' '; 5 * 1024 * 1024];
    for (files, complaint) in [
        (&[layout][..], "no index.json"),
        (&[index], "no oci-layout"),
        (&[layout, index, index], "twice"),
        (&[("oci-layout", b"{}"), index], "version"),
        (&[layout, ("index.json", b"[")], "can't be used"),
        (&[layout, ("index.json", &huge)], "too large"),
        (&[], "no oci-layout"),
    ] {
        archive(&path, files);
        let error = BundleReader::open(&path).unwrap_err().to_string();
        assert!(error.contains(complaint), "{error}");
    }
    archive(&path, &[layout, index]);
    let whole = std::fs::read(&path).unwrap();
    // A link in the place of the index.
    let mut linked = whole.clone();
    linked[1024 + 156] = b'2';
    for (bytes, complaint) in [
        (&whole[..1550], "the middle of \"index.json\""),
        (&[0x1f, 0x8b, 0, 0, 0, 0], "compressed"),
        (&linked, "archive"),
        (&vec![b'x'; 4096], "archive"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = BundleReader::open(&path).unwrap_err().to_string();
        assert!(error.contains(complaint), "{error}");
    }
}

#[test]
fn headers_take_bounded_memory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle");
    // A long name of 2 GiB, in a sparse file.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(2 << 30);
    header.set_cksum();
    let mut file = File::create(&path).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(3 << 30).unwrap();
    let error = BundleReader::open(&path).unwrap_err().to_string();
    assert!(error.contains("too large"), "{error}");
}

#[test]
fn two_writers_never_mix_their_parts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle");
    let image = manifest(b"layer", None);
    for max in [None, Some(1024)] {
        let entries = [entry(&image, Some("a/b"))];
        let mut first = BundleWriter::create(&path, max, &entries).unwrap();
        let content = [7; 4096];
        first.add(&digest(&content), 4096, &content[..]).unwrap();
        let refused = BundleWriter::create(&path, max, &[]).unwrap_err();
        let refused = crate::error_chain::on_one_line(&refused);
        assert!(
            refused.contains("another process is writing it"),
            "{refused}"
        );
        first
            .add(&digest(&image), image.len() as u64, &*image)
            .unwrap();
        let files = first.finish().unwrap();
        assert_eq!(BundleReader::open(&path).unwrap().entries().len(), 1);
        for file in files {
            std::fs::remove_file(file).unwrap();
        }
    }
}

#[test]
fn names_that_control_a_terminal_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle");
    let image = manifest(b"layer", None);
    let name = Some("a/\u{1b}[2Jb");
    write(&path, None, &[entry(&image, name)], &[&image]).unwrap();
    let reader = BundleReader::open(&path).unwrap();
    let error = plan::images(&reader, None).unwrap_err().to_string();
    assert!(error.contains("control characters"), "{error}");
}

#[test]
fn the_memory_of_plans_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle");
    let layers = (0..28_u32).map(|n| {
        let digest = digest(&n.to_le_bytes());
        json!({"mediaType": "x/y", "digest": digest, "size": u64::MAX})
    });
    let image = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": {"mediaType": "x/y", "digest": digest(b"{}"), "size": 2},
        "layers": layers.collect::<Vec<_>>(),
    });
    let image = image.to_string().into_bytes();
    // One image of 30 parts has 101 names.
    let names = (0..101).map(|n| entry(&image, Some(&format!("a/b:{n}"))));
    let names: Vec<_> = names.collect();
    let images = |names: &[Descriptor]| {
        write(&path, None, names, &[&image]).unwrap();
        let reader = BundleReader::open(&path).unwrap();
        plan::images(&reader, None).map(|images| images.len())
    };
    assert_eq!(images(&names[..100]).unwrap(), 100);
    let error = images(&names).unwrap_err().to_string();
    assert!(error.contains("too many parts"), "{error}");
}

#[test]
fn damaged_manifests_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle");
    let image = manifest(b"layer", None);
    write(&path, None, &[entry(&image, Some("a/b"))], &[&image]).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes
        .windows(6)
        .rposition(|window| window == b"layers")
        .unwrap();
    bytes[at] = b'L';
    std::fs::write(&path, bytes).unwrap();
    let reader = BundleReader::open(&path).unwrap();
    let error = plan::images(&reader, None).unwrap_err();
    assert!(matches!(error, BundleError::Digest { .. }), "{error}");
}
