-- Times are microseconds since 1970-01-01 UTC. Digests and UIDs are the
-- pseudonymised or keyed ones: nothing here identifies a patient, and what
-- could ("sealed", "value") arrives encrypted.

-- +goose Up
CREATE TABLE cases (
    id       TEXT    NOT NULL PRIMARY KEY,
    patient  TEXT    NOT NULL,
    study    TEXT    NOT NULL,
    series   TEXT    NOT NULL,
    instance TEXT    NOT NULL,
    state    TEXT    NOT NULL,
    source   TEXT    NOT NULL,
    model    TEXT    NOT NULL,
    input    TEXT    NOT NULL,
    received INTEGER NOT NULL,
    updated  INTEGER NOT NULL,
    verdict  TEXT,
    stages   TEXT
) STRICT;
CREATE INDEX cases_by_state    ON cases (state, received, id);
CREATE INDEX cases_by_received ON cases (received, id);
CREATE INDEX cases_by_patient  ON cases (patient);
CREATE INDEX cases_by_study    ON cases (study);
CREATE INDEX cases_by_series   ON cases (series);
CREATE INDEX cases_by_instance ON cases (instance);

CREATE TABLE case_values (
    case_id TEXT NOT NULL REFERENCES cases (id),
    name    TEXT NOT NULL,
    value   BLOB NOT NULL,
    PRIMARY KEY (case_id, name)
) STRICT;

CREATE TABLE objects (
    id              INTEGER PRIMARY KEY,
    case_id         TEXT    NOT NULL REFERENCES cases (id),
    kind            TEXT    NOT NULL,
    study           TEXT    NOT NULL,
    series          TEXT    NOT NULL,
    instance        TEXT    NOT NULL,
    digest          TEXT    NOT NULL,
    blob            TEXT    NOT NULL,
    size            INTEGER NOT NULL,
    sop_class       TEXT    NOT NULL,
    transfer_syntax TEXT    NOT NULL,
    sealed          BLOB    NOT NULL,
    added           INTEGER NOT NULL,
    UNIQUE (instance, digest)
) STRICT;
CREATE INDEX objects_by_case   ON objects (case_id, id);
CREATE INDEX objects_by_study  ON objects (study);
CREATE INDEX objects_by_series ON objects (series);
CREATE INDEX objects_by_blob   ON objects (blob);

CREATE TABLE deliveries (
    case_id     TEXT    NOT NULL REFERENCES cases (id),
    destination TEXT    NOT NULL,
    instance    TEXT    NOT NULL,
    state       TEXT    NOT NULL,
    attempts    INTEGER NOT NULL,
    detail      TEXT    NOT NULL,
    created     INTEGER NOT NULL,
    updated     INTEGER NOT NULL,
    PRIMARY KEY (case_id, destination, instance)
) STRICT;
CREATE INDEX deliveries_by_state ON deliveries (state, created);

CREATE TABLE patient_keys (
    patient    TEXT    NOT NULL,
    generation INTEGER NOT NULL,
    wrapped    BLOB,
    created    INTEGER NOT NULL,
    erased     INTEGER,
    PRIMARY KEY (patient, generation)
) STRICT;

CREATE TABLE settings (
    name  TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;

CREATE TABLE audit_entries (
    idx     INTEGER NOT NULL PRIMARY KEY,
    case_id TEXT    NOT NULL,
    record  BLOB    NOT NULL
) STRICT;
CREATE INDEX audit_entries_by_case ON audit_entries (case_id, idx);

CREATE TABLE audit_hashes (
    idx  INTEGER NOT NULL PRIMARY KEY,
    hash BLOB    NOT NULL
) STRICT;

CREATE TABLE audit_checkpoints (
    size INTEGER NOT NULL PRIMARY KEY,
    note BLOB    NOT NULL,
    time INTEGER NOT NULL
) STRICT;

-- +goose Down
DROP TABLE audit_checkpoints;
DROP TABLE audit_hashes;
DROP TABLE audit_entries;
DROP TABLE settings;
DROP TABLE patient_keys;
DROP TABLE deliveries;
DROP TABLE objects;
DROP TABLE case_values;
DROP TABLE cases;
