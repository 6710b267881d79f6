//! `docs/api.md`, made from the comments of `proto/lca/v1`, which are the reference
//! documentation. `tools/api-docs` writes it; a test refuses one that is not up to date.

use std::{collections::BTreeMap, fmt::Write as _};

use lca::api::DESCRIPTORS;
use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet, MethodDescriptorProto,
    field_descriptor_proto::{Label, Type},
};

/// What all names begin with, and what readers need not see.
const PACKAGE: &str = ".lca.v1.";
const HEAD: &str = "\
# The gRPC API

<!-- Made by tools/api-docs from the comments in proto/lca/v1. Change those. -->

Every daemon serves this on its unix socket, and with `--grpc-listen` on a loopback port, where each call but
`grpc.health.v1` needs `authorization: Bearer TOKEN` with the token in the file `token` of the daemon's data folder. Both
offer reflection. What a daemon does not do itself it passes on to the peer that does. Examples are in
[examples/python](../examples/python) and [examples/shell](../examples/shell).

Failures carry `google.rpc` details: `ErrorInfo` with a stable `reason`, `RetryInfo` where another attempt may succeed,
`LocalizedMessage` with what a person can do. `grpc-timeout` is honoured and passed on; a unary call takes at most 300 s.
A message of more than 4 MiB is refused. A streamed answer of which nothing is read for 10 minutes is given up.
";

/// The whole document.
///
/// # Panics
/// If the descriptors that were compiled in are none.
pub fn render() -> String {
    let set = FileDescriptorSet::decode(DESCRIPTORS).expect("they are compiled in");
    let mut files: Vec<_> = set.file.iter().filter(|file| file.package() == "lca.v1").collect();
    files.sort_by_key(|file| (file.service.is_empty(), file.name().to_owned()));
    let mut text = HEAD.to_owned();
    for file in files {
        Page { comments: comments(file), text: &mut text }.file(file);
    }
    text
}

/// What stands above each element of a file, by the element's path in its descriptor.
fn comments(file: &FileDescriptorProto) -> BTreeMap<Vec<i32>, String> {
    let locations = file.source_code_info.iter().flat_map(|info| &info.location);
    let said = locations.filter(|at| !at.leading_comments().trim().is_empty());
    let joined = |text: &str| {
        let lines = text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end());
        lines.collect::<Vec<_>>().join("\n").trim().to_owned()
    };
    said.map(|at| (at.path.clone(), joined(at.leading_comments()))).collect()
}

struct Page<'a> {
    comments: BTreeMap<Vec<i32>, String>,
    text: &'a mut String,
}

/// Field numbers of `descriptor.proto`, of which paths consist.
mod at {
    pub(super) const FILE_MESSAGE: i32 = 4;
    pub(super) const FILE_ENUM: i32 = 5;
    pub(super) const FILE_SERVICE: i32 = 6;
    pub(super) const SERVICE_METHOD: i32 = 2;
    pub(super) const MESSAGE_FIELD: i32 = 2;
    pub(super) const MESSAGE_NESTED: i32 = 3;
    pub(super) const MESSAGE_ENUM: i32 = 4;
    pub(super) const ENUM_VALUE: i32 = 2;
}

impl Page<'_> {
    fn file(&mut self, file: &FileDescriptorProto) {
        let name = file.name().rsplit('/').next().unwrap_or_default();
        self.line(&format!("\n## {}", name.trim_end_matches(".proto")));
        for (n, service) in (0..).zip(&file.service) {
            let path = [at::FILE_SERVICE, n];
            self.line(&format!("\n### service `lca.v1.{}`", service.name()));
            self.comment(&path);
            for (n, method) in (0..).zip(&service.method) {
                self.method(method, &[path[0], path[1], at::SERVICE_METHOD, n]);
            }
        }
        for (n, message) in (0..).zip(&file.message_type) {
            self.message(message, &[at::FILE_MESSAGE, n], "");
        }
        for (n, one) in (0..).zip(&file.enum_type) {
            self.enumeration(one, &[at::FILE_ENUM, n], "");
        }
    }

    fn method(&mut self, method: &MethodDescriptorProto, path: &[i32]) {
        let stream = |yes| if yes { "stream " } else { "" };
        self.line(&format!(
            "\n#### `{}({}{}) returns ({}{})`",
            method.name(),
            stream(method.client_streaming()),
            short(method.input_type()),
            stream(method.server_streaming()),
            short(method.output_type()),
        ));
        self.comment(path);
    }

    fn message(&mut self, message: &DescriptorProto, path: &[i32], within: &str) {
        if message.options.as_ref().is_some_and(prost_types::MessageOptions::map_entry) {
            return;
        }
        let name = format!("{within}{}", message.name());
        self.line(&format!("\n### message `{name}`"));
        self.comment(path);
        if !message.field.is_empty() {
            self.line("\n| field | type | |\n|---|---|---|");
        }
        for (n, field) in (0..).zip(&message.field) {
            let said = self.cell(&[path, &[at::MESSAGE_FIELD, n]].concat());
            let kind = kind(field, message);
            self.line(&format!("| `{}` = {} | {kind} | {said} |", field.name(), field.number()));
        }
        for (n, nested) in (0..).zip(&message.nested_type) {
            let path = [path, &[at::MESSAGE_NESTED, n]].concat();
            self.message(nested, &path, &format!("{name}."));
        }
        for (n, one) in (0..).zip(&message.enum_type) {
            let path = [path, &[at::MESSAGE_ENUM, n]].concat();
            self.enumeration(one, &path, &format!("{name}."));
        }
    }

    fn enumeration(&mut self, one: &EnumDescriptorProto, path: &[i32], within: &str) {
        self.line(&format!("\n### enum `{within}{}`", one.name()));
        self.comment(path);
        self.line("\n| value | |\n|---|---|");
        for (n, value) in (0..).zip(&one.value) {
            let said = self.cell(&[path, &[at::ENUM_VALUE, n]].concat());
            self.line(&format!("| `{}` = {} | {said} |", value.name(), value.number()));
        }
    }

    fn comment(&mut self, path: &[i32]) {
        if let Some(comment) = self.comments.get(path) {
            let _infallible = writeln!(self.text, "\n{comment}");
        }
    }

    /// A comment in one cell of a table.
    fn cell(&self, path: &[i32]) -> String {
        let comment = self.comments.get(path).map(String::as_str).unwrap_or_default();
        comment.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
    }

    fn line(&mut self, line: &str) {
        let _infallible = writeln!(self.text, "{line}");
    }
}

fn short(name: &str) -> &str {
    name.strip_prefix(PACKAGE).unwrap_or(name)
}

/// The type of a field as the proto writes it.
fn kind(field: &FieldDescriptorProto, message: &DescriptorProto) -> String {
    let entry = message.nested_type.iter().find(|nested| {
        field.type_name().ends_with(&format!(".{}.{}", message.name(), nested.name()))
            && nested.options.as_ref().is_some_and(prost_types::MessageOptions::map_entry)
    });
    if let Some(entry) = entry {
        let of: Vec<_> = entry.field.iter().map(scalar).collect();
        return format!("map<{}>", of.join(", "));
    }
    let kind = scalar(field);
    if field.label() == Label::Repeated {
        format!("repeated {kind}")
    } else if field.proto3_optional() {
        format!("optional {kind}")
    } else if let Some(oneof) = field.oneof_index.and_then(|n| message.oneof_decl.get(n as usize)) {
        format!("{kind}, one of `{}`", oneof.name())
    } else {
        kind
    }
}

fn scalar(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum | Type::Group => format!("`{}`", short(field.type_name())),
        plain => plain.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_is_that_of_the_proto() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.md");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(committed == render(), "docs/api.md is not up to date: run tools/api-docs");
    }

    #[test]
    fn every_call_is_explained() {
        let text = render();
        let calls = text.split("\n#### ").skip(1);
        for call in calls {
            let (signature, rest) = call.split_once('\n').unwrap();
            let said = rest.split("\n#").next().unwrap().trim();
            assert!(!said.is_empty(), "{signature} has no comment");
        }
    }
}
