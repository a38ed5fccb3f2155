//! Whether the bounds of a walk are values of its key.

use postgres_types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use super::BEGIN;
use super::expressions::ask;
use crate::database::{KeyValue, describe, key_parameters};
use crate::job::spec::Spec;
use crate::walk::Keyset;

/// Checks `walk.from` and `walk.to`: no longer than the key, values of its types as a batch reads
/// them, and in this order.
pub(super) async fn examine(
    client: &Client,
    spec: &Spec,
    keyset: &Keyset,
    problems: &mut Vec<String>,
) -> Result<(), Error> {
    let before = problems.len();
    for (which, values) in [("walk.from", spec.walk.from()), ("walk.to", spec.walk.to())] {
        if values.len() > keyset.columns.len() {
            problems.push(format!(
                "{which}: has {} values, the key ({}) has {}",
                values.len(),
                keyset.column_names().join(", "),
                keyset.columns.len()
            ));
            continue;
        }
        for (value, column) in values.iter().zip(&keyset.columns) {
            let sent = KeyValue(value);
            let parameter: (&(dyn ToSql + Sync), Type) = (&sent, column.parameter_type.clone());
            let sql = format!("SELECT ($1::{})::text", column.type_name);
            if let Err(error) = ask(client, &sql, &[parameter]).await? {
                problems.push(format!("{which}: {}: {}", column.name, describe(&error)));
            }
        }
    }
    let width = spec.walk.from().len().min(spec.walk.to().len());
    if problems.len() > before || width == 0 {
        return Ok(());
    }
    let types = keyset.parameter_types();
    let values = [
        key_parameters(&spec.walk.from()[..width], &types),
        key_parameters(&spec.walk.to()[..width], &types),
    ]
    .concat();
    let parameters: Vec<(&(dyn ToSql + Sync), Type)> =
        values.iter().map(|(value, kind)| (value as &(dyn ToSql + Sync), kind.clone())).collect();
    let begin = format!("{BEGIN} {}", keyset.operator_schemas_sql());
    client.batch_execute(&begin).await?;
    let behind = client.query_typed_one(&keyset.is_behind_sql(width), &parameters).await;
    client.batch_execute("ROLLBACK").await?;
    if behind?.get::<_, Option<bool>>(0) == Some(true) {
        problems.push(format!(
            "walk.from: ({}) lies behind walk.to ({}): no row can be between; for highest first set walk.order = \"descending\"",
            spec.walk.from().join(", "),
            spec.walk.to().join(", ")
        ));
    }
    Ok(())
}
