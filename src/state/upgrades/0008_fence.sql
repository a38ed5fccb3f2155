-- A daemon of before version 5 walks a sweep as it walks the first time, and would change rows twice. Daemons of before this
-- version do not look whether the schema is still theirs; but they ask for this function by name before they claim
-- anything. Without it they let their batches end, hand their slices back and leave. Run with the state schema as the
-- whole search_path.
ALTER FUNCTION is_held(text, timestamptz) RENAME TO is_leased;
