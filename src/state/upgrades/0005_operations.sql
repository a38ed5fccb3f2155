-- What jobs other than updates need. Run with the state schema as the whole search_path.

-- Fails the transaction of a batch that took rows out of their table and did not put all of them into the other.
CREATE FUNCTION require_moved(rows_out bigint, rows_in bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE '% of % rows did not arrive in the table of move.into: a trigger there has refused them',
          rows_out - rows_in, rows_out USING ERRCODE = 'integrity_constraint_violation';
END $$;
