//! Turns the results into charts, and into the tables of docs/performance.md.

mod chart;
mod charts;
mod tables;
mod targets;

use std::fs;
use std::path::Path;

use crate::run::results::Results;
use rabbit_work_bench::Error;

/// Draws charts beside the CSV file, and fills the tables of a Markdown file: each between
/// `<!-- filled: NAME -->` and `<!-- end -->`.
pub fn report(csv: &str, markdown: &str) -> Result<(), Error> {
    let csv = Path::new(csv);
    let results = Results::read(csv)?;
    let folder = csv.parent().unwrap_or(Path::new("."));
    for (name, svg) in charts::charts(&results) {
        fs::write(folder.join(format!("{name}.svg")), svg)?;
    }
    let text = fs::read_to_string(markdown).map_err(|error| format!("{markdown}: {error}"))?;
    fs::write(markdown, fill(&text, |name| tables::table(name, &results))?)?;
    Ok(())
}

/// Replaces what is between the marks by the table of that name.
fn fill(text: &str, table: impl Fn(&str) -> Option<String>) -> Result<String, Error> {
    const END: &str = "<!-- end -->";
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, marked)) = rest.split_once("<!-- filled: ") {
        let (name, after) = marked.split_once(" -->").ok_or("a mark has no end")?;
        let (old, after) = after.split_once(END).ok_or(format!("'{name}' has no {END}"))?;
        // What was not measured in this run stays as it was.
        let new = table(name).map_or(old.to_string(), |table| format!("\n{table}"));
        filled += &format!("{before}<!-- filled: {name} -->{new}{END}");
        rest = after;
    }
    Ok(filled + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let text =
            "a\n<!-- filled: x -->\nold\n<!-- end -->\nb <!-- filled: y -->old<!-- end --> c";
        let table = |name: &str| (name == "x").then(|| "new\n".to_string());
        let filled = fill(text, table).unwrap();
        let expected =
            "a\n<!-- filled: x -->\nnew\n<!-- end -->\nb <!-- filled: y -->old<!-- end --> c";
        assert_eq!(filled, expected);
        assert_eq!(fill(&filled, table).unwrap(), expected, "the same again");
        assert!(fill("<!-- filled: x -->", table).is_err());
    }
}
