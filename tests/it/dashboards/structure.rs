//! What is right about rules and dashboard whatever the data: names, places, links, units.

use std::collections::BTreeSet;

use serde_json::Value;

use super::read;

/// Of each alert: a severity, a place in the runbook, and unit tests in which it fires and in which it does not.
pub(super) fn check_rules(rules: &[&Value]) {
    let (runbook, tests) = (read("docs/runbook.md"), read("tests/prometheus/rules.test.yml"));
    let mut names = BTreeSet::new();
    for alert in rules.iter().filter(|rule| rule["type"] == "alerting") {
        let name = alert["name"].as_str().unwrap();
        assert!(names.insert(name), "two alerts are called {name}");
        let severity = alert["labels"]["severity"].as_str().unwrap_or_default();
        assert!(["page", "ticket"].contains(&severity), "{name}: severity {severity:?}");
        let anchor = format!("docs/runbook.md#{}", name.to_lowercase());
        assert_eq!(alert["annotations"]["runbook_url"], anchor.as_str(), "{name}");
        assert!(runbook.contains(&format!("\n## {name}\n")), "docs/runbook.md has nothing on {name}");
        let checks = || tests.split("alertname: ").skip(1).filter(|check| check.lines().next() == Some(name));
        let quiet =
            checks().filter(|check| check.lines().nth(1).unwrap().ends_with("exp_alerts: []")).count();
        assert!(quiet > 0 && checks().count() > quiet, "{name} is not tested both to fire and not to");
    }
    for heading in runbook.lines().filter_map(|line| line.strip_prefix("## Backfilld")) {
        assert!(
            names.contains(format!("Backfilld{heading}").as_str()),
            "docs/runbook.md: no alert Backfilld{heading}"
        );
    }
}

/// Ids that are not used twice, panels that do not lie on each other, units, descriptions, the data source's variable.
pub(super) fn check_dashboard(dashboard: &Value) {
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    let source = serde_json::json!({"type": "prometheus", "uid": "${datasource}"});
    for panel in panels(dashboard) {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "the id of {title:?} is another panel's");
        let [x, y, width, height] = ["x", "y", "w", "h"].map(|of| panel["gridPos"][of].as_u64().unwrap());
        assert!(x + width <= 24, "{title:?} goes beyond the 24 columns");
        for place in (x..x + width).flat_map(|x| (y..y + height).map(move |y| (x, y))) {
            assert!(taken.insert(place), "{title:?} lies on another panel");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title:?} has no unit");
        assert!(
            panel["description"].as_str().is_some_and(|text| !text.is_empty()),
            "{title:?} is not explained"
        );
        assert_eq!(panel["datasource"], source, "{title:?}");
        let targets = panel["targets"].as_array().unwrap();
        let letters: BTreeSet<&str> = targets.iter().filter_map(|target| target["refId"].as_str()).collect();
        assert!(!targets.is_empty() && letters.len() == targets.len(), "{title:?}: {letters:?}");
        assert!(
            targets.iter().all(|target| target["datasource"] == source),
            "{title:?}: a target's data source"
        );
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        assert!(variable["type"] == "datasource" || variable["datasource"] == source, "{variable}");
    }
}

/// Every query, with the panel or the variable that has it.
pub(super) fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for panel in panels(dashboard).filter(|panel| panel["type"] != "row") {
        for target in panel["targets"].as_array().unwrap() {
            let whose = format!("panel {} {} of the dashboard", panel["title"], target["refId"]);
            queries.push((whose, target["expr"].as_str().unwrap().to_owned()));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let Some(query) = variable["query"]["query"].as_str() else { continue };
        let (series, label) = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.strip_suffix(')')?.rsplit_once(", "))
            .unwrap();
        queries.push((format!("variable {}", variable["name"]), format!("count by ({label}) ({series})")));
    }
    queries
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    let panels = dashboard["panels"].as_array().unwrap();
    panels.iter().chain(panels.iter().flat_map(|panel| panel["panels"].as_array().into_iter().flatten()))
}
