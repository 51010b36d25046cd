//! The tables, and how those of older versions become them.

use openvpn_fleet::failpoint;
use rusqlite::{Connection, Transaction, TransactionBehavior};

/// One step from each version to the next, in a transaction of its own. Steps are added, never changed: there are
/// files that stopped at any of them.
const MIGRATIONS: [&str; 3] = [
    // Names are compared byte by byte. Times are microseconds since 1970.
    //
    // What comes next has its place here too: tokens and grants, each in a table of its own.
    "
    CREATE TABLE meta (
        key TEXT PRIMARY KEY,
        value
    ) WITHOUT ROWID;
    -- Runs of the gateway. `reserved`: no sequence of the run is above it. `last` is set when it ended in order.
    CREATE TABLE runs (
        run INTEGER PRIMARY KEY,
        first INTEGER NOT NULL,
        reserved INTEGER NOT NULL,
        started INTEGER NOT NULL,
        last INTEGER
    );
    CREATE TABLE labels (
        id INTEGER PRIMARY KEY,
        text TEXT NOT NULL UNIQUE
    );
    -- `wire` is the event as streams send it; the rest is what filters look at.
    CREATE TABLE events (
        sequence INTEGER PRIMARY KEY,
        observed INTEGER NOT NULL,
        class INTEGER NOT NULL,
        kind TEXT NOT NULL,
        instance TEXT,
        labels INTEGER,
        half_open INTEGER NOT NULL,
        wire BLOB NOT NULL
    );
    CREATE INDEX events_of_class ON events (class, sequence);
    CREATE INDEX events_by_time ON events (observed);
    -- `hole`: events behind `sequence` are missing; otherwise the gap has that sequence itself.
    CREATE TABLE gaps (
        id INTEGER PRIMARY KEY,
        sequence INTEGER NOT NULL,
        hole INTEGER NOT NULL,
        cause TEXT NOT NULL,
        observed INTEGER NOT NULL,
        instance TEXT,
        labels INTEGER,
        class INTEGER,
        count INTEGER,
        not_before INTEGER,
        not_after INTEGER
    );
    CREATE INDEX gaps_by_sequence ON gaps (sequence, hole);
    -- What is kept of each class of events, and up to where it was thrown away. 3: of gaps.
    CREATE TABLE classes (
        class INTEGER PRIMARY KEY,
        events INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        through INTEGER NOT NULL,
        through_time INTEGER NOT NULL,
        evicted INTEGER NOT NULL
    );
    INSERT INTO classes VALUES (0, 0, 0, 0, 0, 0), (1, 0, 0, 0, 0, 0), (2, 0, 0, 0, 0, 0), (3, 0, 0, 0, 0, 0);
    CREATE TABLE generations (
        instance TEXT PRIMARY KEY,
        address TEXT NOT NULL,
        generation INTEGER NOT NULL,
        pid INTEGER,
        connected_time INTEGER,
        highest_cid INTEGER,
        observed INTEGER
    ) WITHOUT ROWID;
    -- `stage`: 0 intended, 1 sending, 2 finished. `body` is the answer as far as it is known.
    CREATE TABLE actions (
        number INTEGER PRIMARY KEY,
        caller TEXT NOT NULL,
        method TEXT NOT NULL,
        request_id TEXT NOT NULL,
        digest BLOB NOT NULL,
        started INTEGER NOT NULL,
        stage INTEGER NOT NULL,
        targets INTEGER NOT NULL,
        body BLOB,
        UNIQUE (caller, method, request_id)
    );
    CREATE INDEX actions_by_time ON actions (started);
    -- Outcomes of single targets while their action is sending.
    CREATE TABLE action_results (
        number INTEGER NOT NULL,
        target INTEGER NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (number, target)
    ) WITHOUT ROWID;
    -- Single calls that change something. `stage`: 1 sending, 2 finished. `body` is the answer.
    CREATE TABLE calls (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        caller TEXT NOT NULL,
        method TEXT NOT NULL,
        request_id TEXT NOT NULL,
        digest BLOB NOT NULL,
        started INTEGER NOT NULL,
        stage INTEGER NOT NULL,
        body BLOB,
        UNIQUE (caller, method, request_id)
    );
    -- What was said of instances at run time; without a definition only that it is paused.
    CREATE TABLE registry (
        name TEXT PRIMARY KEY,
        definition BLOB,
        pause TEXT,
        updated INTEGER NOT NULL
    ) WITHOUT ROWID;
    ",
    // What is forgotten by its age is so by a clock that nobody sets; what was there before begins to grow old now.
    "
    -- `age`: of the file, in microseconds that gateways have run on it; of a row, the age of the file that wrote it.
    CREATE TABLE clock (
        age INTEGER NOT NULL
    );
    INSERT INTO clock VALUES (0);
    ALTER TABLE events ADD COLUMN age INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE gaps ADD COLUMN age INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE actions ADD COLUMN age INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE calls ADD COLUMN age INTEGER NOT NULL DEFAULT 0;
    DROP INDEX actions_by_time;
    CREATE INDEX actions_by_age ON actions (age);
    CREATE INDEX calls_by_age ON calls (age);
    ",
    // `missing`: of what events were thrown away (gap 0), or fell into the hole that is a gap. `class` is that of
    // `classes`; instance '/' and kind '*' stand for any, instance '' for the gateway. `gaps.through`: the last number
    // that a gap stands for.
    "
    CREATE TABLE missing (
        gap INTEGER NOT NULL,
        class INTEGER NOT NULL,
        kind TEXT NOT NULL,
        instance TEXT NOT NULL,
        labels INTEGER NOT NULL,
        through INTEGER NOT NULL,
        time INTEGER NOT NULL,
        PRIMARY KEY (gap, class, kind, instance, labels)
    ) WITHOUT ROWID;
    INSERT INTO missing
        SELECT 0, class, CASE class WHEN 1 THEN 'log' WHEN 2 THEN 'raw' ELSE '*' END, '/', 0, through, through_time
        FROM classes WHERE through > 0;
    ALTER TABLE gaps ADD COLUMN through INTEGER NOT NULL DEFAULT 0;
    UPDATE gaps SET through = iif(hole, coalesce(
        (SELECT min(sequence) - 1 FROM events WHERE events.class = gaps.class AND events.sequence > gaps.sequence),
        sequence + 1), sequence);
    DROP INDEX gaps_by_sequence;
    CREATE INDEX gaps_by_end ON gaps (through);
    ",
];

/// The version that this program writes.
pub(super) const VERSION: u32 = 3;
const _: () = assert!(VERSION as usize == MIGRATIONS.len());

/// The version of a file; 0 of an empty one.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Brings the tables up to date: after a crash in between, the next start goes on where this one stopped.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    for (done, step) in (1..).zip(MIGRATIONS) {
        if version(connection)? >= done {
            continue;
        }
        let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", done)?;
        failpoint::hit("state.in_migration");
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rusqlite::types::Value;

    use super::*;

    /// The tables of a file, each with its columns.
    fn tables(connection: &Connection) -> Vec<(String, String)> {
        let query = r#"SELECT name, (SELECT group_concat('"' || name || '"') FROM pragma_table_info(tables.name))
                       FROM sqlite_schema AS tables WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"#;
        let mut statement = connection.prepare(query).expect("it is SQL");
        let tables = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
        let tables: rusqlite::Result<_> = tables.and_then(Iterator::collect);
        tables.expect("it is read")
    }

    fn rows(connection: &Connection, table: &str, columns: &str) -> Vec<Vec<Value>> {
        let query = format!("SELECT {columns} FROM {table}");
        let mut statement = connection.prepare(&query).expect("they are there");
        let count = statement.column_count();
        let rows = statement.query_map([], |row| (0..count).map(|at| row.get(at)).collect());
        let rows: rusqlite::Result<_> = rows.and_then(Iterator::collect);
        rows.expect("it is read")
    }

    /// Fails if a file of an older version loses or changes anything on the way, or stops half way.
    #[test]
    fn an_older_file_becomes_a_new_one_with_all_it_has() {
        let mut connection = Connection::open_in_memory().expect("it opens");
        let fill = "
            INSERT INTO meta VALUES ('probe', 1);
            INSERT INTO runs VALUES (1, 2, 3, 4, NULL);
            INSERT INTO labels VALUES (1, '{\"site\":\"eu\"}');
            INSERT INTO events VALUES (7, 5, 0, 'client.established', 'eu1', 1, 0, x'01');
            INSERT INTO events VALUES (9, 6, 1, 'instance.log', 'eu1', NULL, 0, x'02');
            INSERT INTO gaps VALUES (1, 3, 1, 'COMPACTED', 5, NULL, NULL, 1, NULL, NULL, NULL);
            INSERT INTO gaps VALUES (2, 9, 1, 'COMPACTED', 6, NULL, NULL, NULL, NULL, NULL, NULL);
            INSERT INTO gaps VALUES (3, 10, 0, 'UNOBSERVED', 6, 'eu1', 1, NULL, NULL, 5, 6);
            UPDATE classes SET events = 1, bytes = 2, through = 6, through_time = 4, evicted = 3 WHERE class = 1;
            INSERT INTO generations VALUES ('eu1', 'unix:/eu1', 2, 3, 4, 5, 6);
            INSERT INTO actions VALUES (3, 'alice', 'KillClients', 'x', x'00', 5, 2, 1, x'02');
            INSERT INTO action_results VALUES (3, 0, x'05');
            INSERT INTO calls VALUES (4, 'alice', 'SetMute', 'y', x'00', 5, 2, x'03');
            INSERT INTO registry VALUES ('eu2', x'04', 'a while', 5);
        ";
        connection.execute_batch(MIGRATIONS[0]).expect("it is SQL");
        connection.execute_batch(fill).expect("it fits");
        connection
            .pragma_update(None, "user_version", 1)
            .expect("it is set");
        let before = tables(&connection).into_iter().map(|(table, columns)| {
            let rows = rows(&connection, &table, &columns);
            assert!(!rows.is_empty(), "{table} is not tested");
            (table, columns, rows)
        });
        let before: Vec<_> = before.collect();
        for _ in 0..2 {
            migrate(&mut connection).expect("it becomes a new one");
            assert_eq!(version(&connection), Ok(VERSION));
            for (table, columns, had) in &before {
                assert_eq!(&rows(&connection, table, columns), had, "{table}");
            }
            // What an older version did not note: they begin to grow old now, and how far a gap reaches.
            let ages =
                "SELECT age FROM events UNION SELECT age FROM gaps UNION SELECT age FROM actions
                        UNION SELECT age FROM calls UNION SELECT age FROM clock";
            assert_eq!(
                rows(&connection, &format!("({ages})"), "age"),
                [[Value::Integer(0)]]
            );
            let through = rows(&connection, "gaps ORDER BY id", "through");
            assert_eq!(through.concat(), [8, 10, 10].map(Value::Integer));
            let missing = rows(
                &connection,
                "missing",
                "class, kind, instance, through, time",
            );
            let text = |text: &str| Value::Text(text.to_owned());
            let [one, four, six] = [1, 4, 6].map(Value::Integer);
            assert_eq!(missing, [[one, text("log"), text("/"), six, four]]);
        }
    }
}
