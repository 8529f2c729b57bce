//! Every input that led somewhere new when the targets were searched by coverage is survived again.

use std::path::Path;

#[test]
fn every_corpus_is_survived() {
    for target in weft_fuzz::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
        let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut count = 0;
        for file in files {
            let path = file.unwrap().path();
            // On failure the last line names the input.
            println!("{}", path.display());
            (target.run)(&std::fs::read(&path).unwrap());
            count += 1;
        }
        assert!(count > 0, "{} has no inputs", folder.display());
    }
}

#[test]
fn seeds_are_survived_whole_and_cut_short() {
    for target in weft_fuzz::TARGETS {
        for seed in (target.seeds)() {
            (target.run)(&seed);
            (target.run)(&seed[..seed.len() / 2]);
            (target.run)(&seed[..seed.len() - 1]);
        }
    }
}
