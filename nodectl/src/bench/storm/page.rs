//! The report as one HTML file: the page holds its data, draws it itself, and asks nobody for anything.

use super::{Document, report};
use crate::failure::Failure;

const PAGE: &str = include_str!("page.html");

/// The whole file.
pub(super) fn html(document: &Document) -> Result<String, Failure> {
    let data = serde_json::to_string(document)
        .map_err(|error| Failure::failed(format!("could not write the report's data: {error}")))?;
    // Inside a script nothing may look like its end.
    let data = data.replace("</", "<\\/");
    let table = escape(&report::table(document));
    Ok(PAGE.replace("{{title}}", &escape(&document.scenario)).replace("{{table}}", &table).replace("{{data}}", &data))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
