//! Prints `docs/api.md`, for `tools/api-docs`.

fn main() {
    print!("{}", lca_tests::api_docs::render());
}
