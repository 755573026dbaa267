//! Finds messages in Rust source.

use std::fmt;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, Lit, LitStr, Meta};

/// Where a message appears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// clap's texts.
    Help,
    /// The summary of an option.
    Option,
    /// Written by the command line itself.
    Cli,
    /// `#[error]` and anyhow's macros and contexts.
    Error,
    /// Subject or note of a step of the shim that failed.
    Failure,
    /// What the plugin was doing when a system call failed.
    Step,
    LogError,
    LogWarn,
    LogInfo,
    /// A broken invariant.
    Panic,
    /// Everything else with two words.
    Text,
}

impl Kind {
    pub(crate) const ALL: [Self; 11] = [
        Self::Help,
        Self::Option,
        Self::Cli,
        Self::Error,
        Self::Failure,
        Self::Step,
        Self::LogError,
        Self::LogWarn,
        Self::LogInfo,
        Self::Panic,
        Self::Text,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Help => "help",
            Self::Option => "option",
            Self::Cli => "cli",
            Self::Error => "error",
            Self::Failure => "failure",
            Self::Step => "step",
            Self::LogError => "log error",
            Self::LogWarn => "log warn",
            Self::LogInfo => "log info",
            Self::Panic => "panic",
            Self::Text => "text",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Message {
    /// The top module, or the crate if it is another than the driver's.
    room: String,
    pub(crate) kind: Kind,
    text: String,
}

impl Message {
    pub(crate) fn in_room_of(mut self, root: &Path, file: &Path) -> Self {
        let parts: Vec<_> = file
            .strip_prefix(root)
            .expect("a file of the project")
            .iter()
            .map(|part| part.to_str().expect("UTF-8"))
            .collect();
        self.room = match parts.iter().position(|part| *part == "src") {
            Some(0) | None => parts[1].trim_end_matches(".rs").to_owned(),
            Some(src) => parts[src - 1].to_owned(),
        };
        self
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.text.replace('\n', "\\n").replace('\t', "\\t"))
    }
}

/// The text of the golden file: one message a line, below the name of its room.
pub(crate) fn listing(mut messages: Vec<Message>) -> String {
    messages.sort();
    messages.dedup();
    let mut text = "# Every message that an operator can read, from the source; tests/messages.rs writes and compares it.\n".to_owned();
    let mut room = String::new();
    for message in messages {
        if message.room != room {
            text.push_str(&format!("\n[{}]\n", message.room));
            room.clone_from(&message.room);
        }
        text.push_str(&format!("{message}\n"));
    }
    text
}

pub(crate) fn of_source(source: &str) -> Vec<Message> {
    of_file(Path::new("src/planted.rs"), source, &mut Vec::new())
}

/// The messages of a file. The files and directories that it compiles only for tests are added to `tests_only`.
pub(crate) fn of_file(path: &Path, source: &str, tests_only: &mut Vec<PathBuf>) -> Vec<Message> {
    let file = syn::parse_file(source).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut finder = Finder { path, kind: None, found: Vec::new(), tests_only };
    finder.visit_file(&file);
    finder.found
}

struct Finder<'a> {
    path: &'a Path,
    /// The kind of the literals here, if the place makes them messages.
    kind: Option<Kind>,
    found: Vec<Message>,
    tests_only: &'a mut Vec<PathBuf>,
}

impl Finder<'_> {
    fn add(&mut self, kind: Kind, text: String) {
        self.found.push(Message { room: String::new(), kind, text });
    }

    fn literal(&mut self, text: String) {
        match self.kind {
            Some(kind) if has_letter(&text) => self.add(kind, text),
            None if is_prose(&text) => self.add(Kind::Text, text),
            _ => {}
        }
    }

    fn within(&mut self, kind: Option<Kind>, look: impl FnOnce(&mut Self)) {
        let outer = self.kind;
        self.kind = kind.or(outer);
        look(self);
        self.kind = outer;
    }

    /// The body of a macro, which syn does not parse.
    fn tokens(&mut self, tokens: TokenStream, options: bool) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        // Only the first line of an option's documentation is its summary.
        let mut documented = false;
        for (place, token) in tokens.iter().enumerate() {
            let before = |n: usize| place.checked_sub(n).map(|before| tokens[before].to_string());
            match token {
                TokenTree::Literal(literal) => {
                    if let Ok(Lit::Str(text)) = syn::parse_str::<Lit>(&literal.to_string()) {
                        self.literal(text.value());
                    }
                }
                TokenTree::Group(group) if before(1).as_deref() == Some("#") => {
                    let attribute: Vec<_> = group.stream().into_iter().collect();
                    if options
                        && !documented
                        && attribute.first().is_some_and(|name| name.to_string() == "doc")
                        && let Some(TokenTree::Literal(line)) = attribute.last()
                    {
                        let line: LitStr = syn::parse_str(&line.to_string()).expect("a string");
                        self.add(Kind::Option, line.value().trim().to_owned());
                        documented = true;
                    }
                }
                TokenTree::Group(group) => {
                    let name = before(2).filter(|_| before(1).as_deref() == Some("!")).unwrap_or_default();
                    // The fields of the struct that `options!` declares are in its braces.
                    let fields = options || before(2).as_deref() == Some("struct");
                    self.macro_tokens(&name, group.stream(), fields);
                }
                TokenTree::Punct(end) if end.as_char() == ',' => documented = false,
                _ => {}
            }
        }
    }

    fn macro_tokens(&mut self, name: &str, tokens: TokenStream, options: bool) {
        if !["asm", "debug", "trace"].contains(&name) {
            self.within(of_macro(name), |finder| finder.tokens(tokens, options));
        }
    }

    /// The documentation of a command or an argument: clap joins the lines.
    fn documentation(&mut self, attributes: &[Attribute]) {
        let lines: Vec<String> = attributes.iter().filter_map(doc_line).collect();
        if !lines.is_empty() {
            self.add(Kind::Help, lines.join(" "));
        }
    }

    fn compiled_for_tests(&mut self, module: &syn::ItemMod) {
        let dir = self.path.parent().expect("a file in a directory");
        let named = module.attrs.iter().find_map(|attribute| match &attribute.meta {
            Meta::NameValue(pair) if pair.path.is_ident("path") => string(&pair.value),
            _ => None,
        });
        if let Some(named) = named {
            self.tests_only.push(dir.join(named));
            return;
        }
        let stem = self.path.file_stem().expect("a file name");
        let dir =
            if stem == "mod" || stem == "lib" || stem == "main" { dir.to_owned() } else { dir.join(stem) };
        let name = module.ident.to_string();
        self.tests_only.extend([dir.join(format!("{name}.rs")), dir.join(name)]);
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes = match item {
            syn::Item::Fn(item) => &item.attrs[..],
            syn::Item::Mod(item) => &item.attrs[..],
            syn::Item::Impl(item) => &item.attrs[..],
            syn::Item::Const(item) => &item.attrs[..],
            syn::Item::Static(item) => &item.attrs[..],
            syn::Item::Struct(item) => &item.attrs[..],
            syn::Item::Enum(item) => &item.attrs[..],
            syn::Item::Macro(item) => &item.attrs[..],
            _ => &[],
        };
        if !is_for_tests(attributes) {
            visit::visit_item(self, item);
        } else if let syn::Item::Mod(module) = item
            && module.content.is_none()
        {
            self.compiled_for_tests(module);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_for_tests(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        if is_of_clap(&item.attrs) {
            self.documentation(&item.attrs);
            item.fields.iter().for_each(|field| self.documentation(&field.attrs));
        }
        visit::visit_item_struct(self, item);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        if is_of_clap(&item.attrs) {
            for variant in &item.variants {
                self.documentation(&variant.attrs);
                variant.fields.iter().for_each(|field| self.documentation(&field.attrs));
            }
        }
        visit::visit_item_enum(self, item);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        let kind = match attribute.path().segments.last().map(|name| name.ident.to_string()).as_deref() {
            Some("error") => Kind::Error,
            Some("command" | "arg" | "clap" | "value") => Kind::Help,
            _ => return,
        };
        if let Meta::List(list) = &attribute.meta {
            self.within(Some(kind), |finder| finder.tokens(list.tokens.clone(), false));
        }
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        let name = called.path.segments.last().map(|name| name.ident.to_string()).unwrap_or_default();
        self.macro_tokens(&name, called.tokens.clone(), false);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        self.visit_expr(&call.receiver);
        let kind = match call.method.to_string().as_str() {
            "context" | "with_context" => Some(Kind::Error),
            "with_note" => Some(Kind::Failure),
            "expect" => Some(Kind::Panic),
            "failed" => Some(Kind::Step),
            _ => None,
        };
        self.within(kind, |finder| call.args.iter().for_each(|argument| finder.visit_expr(argument)));
    }

    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        let kind = if let Expr::Path(function) = &*call.func { of_function(&function.path) } else { None };
        self.within(kind, |finder| visit::visit_expr_call(finder, call));
    }

    /// If one arm of a match is a text, single words in the other arms are texts as well.
    fn visit_expr_match(&mut self, matched: &'ast syn::ExprMatch) {
        let texts: Vec<_> = matched.arms.iter().filter_map(|arm| string(&arm.body)).collect();
        if self.kind.is_none() && texts.iter().any(|text| is_prose(text)) {
            let words = texts.into_iter().filter(|text| !is_prose(text) && has_letter(text));
            words.for_each(|word| self.add(Kind::Text, word));
        }
        visit::visit_expr_match(self, matched);
    }

    fn visit_lit_str(&mut self, literal: &'ast LitStr) {
        self.literal(literal.value());
    }

    fn visit_lit_byte_str(&mut self, literal: &'ast syn::LitByteStr) {
        self.literal(String::from_utf8_lossy(&literal.value()).into_owned());
    }
}

fn of_macro(name: &str) -> Option<Kind> {
    match name {
        "error" => Some(Kind::LogError),
        "warn" => Some(Kind::LogWarn),
        "info" => Some(Kind::LogInfo),
        "bail" | "anyhow" | "ensure" => Some(Kind::Error),
        "panic" | "unreachable" | "assert" | "assert_eq" | "assert_ne" | "debug_assert" => Some(Kind::Panic),
        _ => None,
    }
}

fn of_function(path: &syn::Path) -> Option<Kind> {
    let names: Vec<_> = path.segments.iter().map(|name| name.ident.to_string()).collect();
    match names.iter().rev().map(String::as_str).collect::<Vec<_>>()[..] {
        ["on" | "new", "CallError" | "IoError", ..] => Some(Kind::Step),
        ["say", ..] => Some(Kind::Cli),
        [_, "Failure", ..] => Some(Kind::Failure),
        _ => None,
    }
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string() == "test")
    })
}

fn is_of_clap(attributes: &[Attribute]) -> bool {
    attributes.iter().filter(|attribute| attribute.path().is_ident("derive")).any(|derive| {
        let derived = derive.meta.require_list().map(|list| list.tokens.to_string()).unwrap_or_default();
        let mut names = derived.split(|c: char| !c.is_alphanumeric());
        names.any(|name| ["Parser", "Args", "Subcommand", "ValueEnum"].contains(&name))
    })
}

fn doc_line(attribute: &Attribute) -> Option<String> {
    match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => {
            string(&pair.value).map(|line| line.trim().to_owned())
        }
        _ => None,
    }
}

fn string(expression: &Expr) -> Option<String> {
    match expression {
        Expr::Lit(literal) => match &literal.lit {
            Lit::Str(text) => Some(text.value()),
            _ => None,
        },
        _ => None,
    }
}

/// The text without the placeholders of `format!`.
fn fixed(text: &str) -> String {
    let mut depth = 0_usize;
    text.chars()
        .filter(|c| {
            match c {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                _ => return depth == 0,
            }
            false
        })
        .collect()
}

fn has_letter(text: &str) -> bool {
    fixed(text).chars().any(char::is_alphabetic)
}

/// Whether there are two words in it.
fn is_prose(text: &str) -> bool {
    let fixed = fixed(text);
    let is_word = |word: &&str| word.chars().filter(|c| c.is_alphabetic()).count() >= 2;
    fixed.split_whitespace().filter(is_word).count() >= 2
        || fixed.split_whitespace().any(|word| is_word(&word)) && text != fixed && text.contains(' ')
}
