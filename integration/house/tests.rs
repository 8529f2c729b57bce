//! The house rules that a program can check: sizes, circles among files, tests beside the code.
//!
//! Each test prints what it measured; run with `--nocapture` to see the figures.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{ImplItemFn, Item, ItemFn, ItemImpl, ItemMod, ItemStruct, ItemUse, Type, UseTree};

/// Roots of the crates, seen from the workspace.
const CRATES: [&str; 7] =
    ["crypto/src", "gossip/src", "router/mesh/src", "router/sys/src", "router/src", "bench/src", "integration"];
/// Directories of the pure core in which each file has tests of its own.
const TESTED: [&str; 5] = ["node", "records", "segments", "sessions", "topology"];
const MAX_FILE_LINES: usize = 500;
const MAX_FIELDS: usize = 20;
const MAX_METHODS: usize = 40;
const MEDIAN_FUNCTION: usize = 10;
const P99_FUNCTION: usize = 60;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a directory of the workspace").to_owned()
}

/// A file of a crate: its path in the workspace, its module path, its text and its syntax.
struct Source {
    path: String,
    module: Vec<String>,
    text: String,
    syntax: syn::File,
}

fn sources(root: &str) -> Vec<Source> {
    let base = workspace().join(root);
    let mut found = Vec::new();
    let mut directories = vec![base.clone()];
    while let Some(directory) = directories.pop() {
        for entry in
            std::fs::read_dir(&directory).expect("a directory of sources").map(|entry| entry.expect("an entry"))
        {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(source(root, &base, &path));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn source(root: &str, base: &Path, path: &Path) -> Source {
    let inside = path.strip_prefix(base).expect("below the root").with_extension("");
    let mut module: Vec<String> = inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|last| matches!(last.as_str(), "mod" | "lib" | "main")) {
        module.pop();
    }
    let text = std::fs::read_to_string(path).expect("a source file");
    let syntax = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let path = format!("{root}/{}.rs", inside.display());
    Source { path, module, text, syntax }
}

fn all_sources() -> impl Iterator<Item = Source> {
    CRATES.into_iter().flat_map(sources)
}

fn is_test(module: &ItemMod) -> bool {
    module.attrs.iter().any(|attribute| attribute.path().is_ident("cfg"))
}

fn fail_with(problems: &[String]) {
    assert!(problems.is_empty(), "{} against the house rules:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn no_file_is_longer_than_five_hundred_lines() {
    let lengths: BTreeMap<String, usize> = all_sources().map(|file| (file.path, file.text.lines().count())).collect();
    println!("{} files, {} lines", lengths.len(), lengths.values().sum::<usize>());
    let long = lengths.into_iter().filter(|(_, lines)| *lines > MAX_FILE_LINES);
    fail_with(&long.map(|(path, lines)| format!("{path}: {lines} lines")).collect::<Vec<_>>());
}

/// Lines of every function outside tests.
#[derive(Default)]
struct Functions(Vec<(usize, String)>);

impl Functions {
    fn add(&mut self, name: &syn::Ident, whole: proc_macro2::Span) {
        self.0.push((whole.end().line - whole.start().line + 1, name.to_string()));
    }
}

impl<'a> Visit<'a> for Functions {
    fn visit_item_fn(&mut self, function: &'a ItemFn) {
        self.add(&function.sig.ident, function.sig.span().join(function.block.span()).expect("one file"));
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'a ImplItemFn) {
        self.add(&function.sig.ident, function.sig.span().join(function.block.span()).expect("one file"));
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_item_mod(&mut self, module: &'a ItemMod) {
        if !is_test(module) {
            visit::visit_item_mod(self, module);
        }
    }
}

#[test]
fn functions_are_short() {
    let mut lengths = Vec::new();
    for file in all_sources().filter(|file| !file.path.ends_with("tests.rs")) {
        let mut functions = Functions::default();
        functions.visit_file(&file.syntax);
        lengths.extend(functions.0.into_iter().map(|(lines, name)| (lines, format!("{}: {name}", file.path))));
    }
    lengths.sort();
    let at = |share: usize| lengths[(lengths.len() - 1) * share / 100].0;
    println!("{} functions: median {} lines, p99 {}", lengths.len(), at(50), at(99));
    let longest: Vec<String> = lengths.iter().rev().take(5).map(|(lines, name)| format!("{name}: {lines}")).collect();
    assert!(at(50) <= MEDIAN_FUNCTION && at(99) <= P99_FUNCTION, "the longest: {longest:#?}");
}

#[test]
fn no_type_of_the_core_has_many_fields_or_methods() {
    let mut fields: Vec<(usize, String)> = Vec::new();
    let mut methods: BTreeMap<String, usize> = BTreeMap::new();
    for file in sources("router/mesh/src") {
        for item in &file.syntax.items {
            match item {
                Item::Struct(ItemStruct { ident, fields: own, .. }) => fields.push((own.len(), ident.to_string())),
                Item::Impl(ItemImpl { self_ty, trait_: None, items, .. }) => {
                    let Type::Path(named) = &**self_ty else { continue };
                    let name = named.path.segments.last().expect("a name").ident.to_string();
                    let is_method = |item: &&syn::ImplItem| matches!(item, syn::ImplItem::Fn(_));
                    // A private type of one file may have another's name.
                    let name = if name == "Peer" { format!("{name} in {}", file.path) } else { name };
                    *methods.entry(name).or_default() += items.iter().filter(is_method).count();
                }
                _ => {}
            }
        }
    }
    let most = |counts: &BTreeMap<String, usize>| counts.iter().map(|(name, count)| (*count, name.clone())).max();
    println!("most fields: {:?}, most methods: {:?}", fields.iter().max(), most(&methods));
    let wide = fields.into_iter().filter(|(count, _)| *count > MAX_FIELDS);
    let busy = methods.into_iter().filter(|(_, count)| *count > MAX_METHODS);
    let wide = wide.map(|(count, name)| format!("{name}: {count} fields"));
    fail_with(&wide.chain(busy.map(|(name, count)| format!("{name}: {count} methods"))).collect::<Vec<_>>());
}

#[test]
fn files_of_the_core_have_tests_of_their_own() {
    let core = sources("router/mesh/src");
    let is_tests = |item: &Item| matches!(item, Item::Mod(module) if is_test(module));
    let for_tests: BTreeSet<Vec<String>> = core.iter().flat_map(test_modules).collect();
    let is_untested = |file: &&Source| {
        let is_covered = TESTED.iter().any(|directory| file.module.first().is_some_and(|first| first == directory));
        let has_functions =
            !file.syntax.items.iter().all(|item| matches!(item, Item::Use(_) | Item::Mod(_) | Item::Const(_)));
        is_covered && has_functions && !for_tests.contains(&file.module) && !file.syntax.items.iter().any(is_tests)
    };
    fail_with(&core.iter().filter(is_untested).map(|file| file.path.clone()).collect::<Vec<_>>());
}

/// Modules that a file declares for tests alone.
fn test_modules(file: &Source) -> Vec<Vec<String>> {
    let declared = file.syntax.items.iter().filter_map(|item| match item {
        Item::Mod(module) if is_test(module) => Some(module.ident.to_string()),
        _ => None,
    });
    declared.map(|name| [file.module.clone(), vec![name]].concat()).collect()
}

/// Module paths that a file imports from its own crate, outside tests.
struct Imports<'m> {
    module: &'m [String],
    found: BTreeSet<Vec<String>>,
}

impl Imports<'_> {
    fn add(&mut self, path: &[String]) {
        let mut whole = match path.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            // A module of this file's, or nothing of this crate's.
            _ => self.module.to_vec(),
        };
        for part in path {
            match part.as_str() {
                "crate" | "self" => {}
                "super" => drop(whole.pop()),
                part => whole.push(part.to_owned()),
            }
        }
        self.found.insert(whole);
    }

    fn walk(&mut self, tree: &UseTree, before: &mut Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.walk(&path.tree, before);
                before.pop();
            }
            UseTree::Name(name) => self.add(&[&before[..], &[name.ident.to_string()]].concat()),
            UseTree::Rename(name) => self.add(&[&before[..], &[name.ident.to_string()]].concat()),
            UseTree::Glob(_) => self.add(before),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.walk(tree, before)),
        }
    }
}

impl<'a> Visit<'a> for Imports<'_> {
    fn visit_item_use(&mut self, item: &'a ItemUse) {
        self.walk(&item.tree, &mut Vec::new());
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if parts.len() > 1 {
            self.add(&parts);
        }
        visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, module: &'a ItemMod) {
        if !is_test(module) {
            visit::visit_item_mod(self, module);
        }
    }
}

/// Files that each file imports, by number. The root of a crate only hands names on.
fn imports(files: &[Source]) -> Vec<BTreeSet<usize>> {
    let by_module: BTreeMap<&[String], usize> =
        files.iter().enumerate().map(|(number, file)| (&file.module[..], number)).collect();
    let imported = |file: &Source| {
        let mut imports = Imports { module: &file.module, found: BTreeSet::new() };
        imports.visit_file(&file.syntax);
        let longest = |path: Vec<String>| (1..=path.len()).rev().find_map(|end| by_module.get(&path[..end]).copied());
        imports.found.into_iter().filter_map(longest).filter(|target| files[*target].module != file.module).collect()
    };
    files.iter().map(imported).collect()
}

/// Files in circles: those that lead back to themselves, with the others of their circle.
fn circles(imports: &[BTreeSet<usize>]) -> BTreeSet<BTreeSet<usize>> {
    let reached = |start: usize| {
        let mut seen: BTreeSet<usize> = BTreeSet::new();
        let mut next: Vec<usize> = imports[start].iter().copied().collect();
        while let Some(file) = next.pop() {
            if seen.insert(file) {
                next.extend(&imports[file]);
            }
        }
        seen
    };
    let reach: Vec<BTreeSet<usize>> = (0..imports.len()).map(reached).collect();
    let circle = |file: usize| reach[file].iter().copied().filter(|other| reach[*other].contains(&file)).collect();
    (0..imports.len()).filter(|file| reach[*file].contains(file)).map(circle).collect()
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut problems = Vec::new();
    for root in CRATES {
        let files = sources(root);
        let all = imports(&files);
        // A module and those inside it belong together: imports between them do not count by themselves,
        let is_family = |a: &Source, b: &Source| a.module.starts_with(&b.module) || b.module.starts_with(&a.module);
        let apart =
            |file: usize| all[file].iter().copied().filter(|to| !is_family(&files[file], &files[*to])).collect();
        let apart: Vec<BTreeSet<usize>> = (0..files.len()).map(apart).collect();
        // but a circle that leaves a directory does, whatever it is made of.
        let leaves = |circle: &BTreeSet<usize>| {
            let rooms: BTreeSet<_> = circle.iter().map(|file| files[*file].module.first()).collect();
            rooms.len() > 1
        };
        let found = circles(&apart).into_iter().chain(circles(&all).into_iter().filter(leaves));
        let named =
            |circle: BTreeSet<usize>| circle.into_iter().map(|file| files[file].path.clone()).collect::<Vec<_>>();
        problems.extend(found.map(|circle| named(circle).join(", ")));
    }
    fail_with(&problems);
}
