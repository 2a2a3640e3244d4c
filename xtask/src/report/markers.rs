//! The places in README that `report` fills: everything between `<!-- report:begin NAME -->` and `<!-- report:end NAME -->`.

use anyhow::{Result, bail};

/// `text` with every marked place filled by `section(name)`, which is `None` for a name it does not know.
///
/// # Errors
/// A begin without its end, an end without its begin, or an unknown name; each with its line.
pub(crate) fn fill(text: &str, known: &[&str], section: impl Fn(&str) -> Option<String>) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut open: Option<(&str, usize)> = None;
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        if let Some(name) = marker(line, "begin") {
            if let Some((outer, at)) = open {
                bail!("line {number}: `{name}` begins inside `{outer}`, which began on line {at} and did not end");
            }
            let Some(content) = section(name) else {
                bail!("line {number}: unknown section `{name}`: expected one of {}", known.join(", "));
            };
            open = Some((name, number));
            out.push_str(line);
            out.push('\n');
            out.push_str(content.trim_end());
            out.push('\n');
        } else if let Some(name) = marker(line, "end") {
            match open.take() {
                Some((begun, _)) if begun == name => {}
                Some((begun, at)) => bail!("line {number}: `{name}` ends, but `{begun}` began on line {at}"),
                None => bail!("line {number}: `{name}` ends without having begun"),
            }
            out.push_str(line);
            out.push('\n');
        } else if open.is_none() {
            out.push_str(line);
            out.push('\n');
        }
    }
    if let Some((name, at)) = open {
        bail!("line {at}: `{name}` begins and never ends: expected `<!-- report:end {name} -->`");
    }
    Ok(out)
}

/// The names of the sections that `text` has a place for.
pub(crate) fn names(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| marker(line, "begin")).collect()
}

fn marker<'a>(line: &'a str, kind: &str) -> Option<&'a str> {
    line.trim().strip_prefix("<!-- report:")?.strip_prefix(kind)?.strip_suffix("-->").map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(name: &str) -> Option<String> {
        ["one", "two"].iter().position(|known| *known == name).map(|i| format!("| {} |\n", i + 1))
    }

    #[test]
    fn fills_what_is_marked_and_nothing_else() {
        let text = "# a\n<!-- report:begin one -->\nold\nolder\n<!-- report:end one -->\nb\n<!-- report:begin two -->\n<!-- report:end two -->\n";
        let filled = fill(text, &["one", "two"], number).unwrap();
        let expected = "# a\n<!-- report:begin one -->\n| 1 |\n<!-- report:end one -->\nb\n<!-- report:begin two -->\n| 2 |\n<!-- report:end two -->\n";
        assert_eq!(filled, expected);
        assert_eq!(fill(&filled, &["one", "two"], number).unwrap(), filled, "filling twice changes nothing");
        assert_eq!(names(&filled), ["one", "two"]);
    }

    #[test]
    fn says_what_is_wrong_with_a_marker() {
        let message = |text: &str| fill(text, &["one", "two"], number).unwrap_err().to_string();
        assert!(message("<!-- report:begin three -->\n<!-- report:end three -->").contains("expected one of one, two"));
        assert!(message("x\n<!-- report:begin one -->\n").contains("line 2: `one` begins and never ends"));
        assert!(message("<!-- report:end one -->\n").contains("without having begun"));
        assert!(message("<!-- report:begin one -->\n<!-- report:begin two -->\n").contains("begins inside `one`"));
        assert!(
            message("<!-- report:begin one -->\n<!-- report:end two -->\n").contains("`two` ends, but `one` began")
        );
    }
}
