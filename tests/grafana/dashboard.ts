// What a dashboard may be, by the types that Grafana publishes. `scripts/check-dashboard` writes the dashboard behind
// this, lays the types of one release beside it, and has the TypeScript compiler look at both.
import type * as model from './dashboard.types';
import type * as stat from './stat.types';
import type * as timeline from './statetimeline.types';
import type * as table from './table.types';
import type * as series from './timeseries.types';

// In JSON an enum's value is a text like any other.
type Json<T> = T extends string
  ? `${T}`
  : T extends (infer Item)[]
    ? Json<Item>[]
    : T extends object
      ? { [Key in keyof T]: Json<T[Key]> }
      : T;

// The model leaves open what the options of a panel are; here each kind has its own.
type Of<Kind extends string, Options, Custom> = Omit<model.Panel, 'type' | 'options' | 'fieldConfig'> & {
  type: Kind;
  options: Options;
  fieldConfig: {
    defaults: Omit<model.FieldConfig, 'custom'> & { custom?: Partial<Custom> };
    overrides: model.FieldConfigSource['overrides'];
  };
};

type Panel =
  | model.RowPanel
  | Of<'stat', stat.Options, never>
  | Of<'state-timeline', timeline.Options, timeline.FieldConfig>
  | Of<'table', table.Options, table.FieldConfig>
  | Of<'timeseries', series.Options, series.FieldConfig>;

type Dashboard = Omit<model.Dashboard, 'panels'> & { panels: Panel[] };

export const dashboard: Json<Dashboard> =
