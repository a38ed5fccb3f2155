// What a dashboard may be, by the types that Grafana publishes. `scripts/check-dashboard` writes the dashboard behind
// this and has the TypeScript compiler look at both.
import type * as model from './node_modules/@grafana/schema/dist/types/raw/dashboard/x/types.gen';
import type * as stat from './node_modules/@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/types.gen';
import type * as timeline from './node_modules/@grafana/schema/dist/types/raw/composable/statetimeline/panelcfg/x/types.gen';
import type * as table from './node_modules/@grafana/schema/dist/types/raw/composable/table/panelcfg/x/types.gen';
import type * as series from './node_modules/@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/types.gen';

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
