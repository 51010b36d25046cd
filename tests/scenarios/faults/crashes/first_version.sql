-- What the first version of the state began a file with, as SQLite kept it. A record of what was written once: it does
-- not follow the program.
PRAGMA auto_vacuum = INCREMENTAL;
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value
) WITHOUT ROWID;
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
CREATE TABLE action_results (
    number INTEGER NOT NULL,
    target INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (number, target)
) WITHOUT ROWID;
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
CREATE TABLE registry (
    name TEXT PRIMARY KEY,
    definition BLOB,
    pause TEXT,
    updated INTEGER NOT NULL
) WITHOUT ROWID;
PRAGMA user_version = 1;
