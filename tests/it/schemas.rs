//! The schemas against the documented tables, and the errors of schema files.

use arrow::datatypes::DataType;
use flarelake::schema::{Catalog, ColumnType};

/// Log type, column, type, required, description: written down from the documentation.
const DOCUMENTED: &str = include_str!("../data/documented_columns.tsv");

#[test]
fn every_documented_column_is_there_in_order_with_its_type_and_description() {
    let catalog = Catalog::embedded();
    assert_eq!(catalog.types().len(), 3);
    for log_type in catalog.types() {
        let own =
            log_type.columns.iter().map(|c| (c.name.as_str(), c.kind, c.required, c.description.as_str()));
        let standard = log_type.standard.iter().map(|(s, d)| (s.name(), s.kind(), s.required(), d.as_str()));
        let ours: Vec<String> = own
            .chain(standard)
            .map(|(name, kind, required, text)| {
                let required = if required { "required" } else { "optional" };
                [&log_type.name, name, kind.documented(), required, text].join("\t")
            })
            .collect();
        let documented: Vec<&str> =
            DOCUMENTED.lines().filter(|l| l.split('\t').next() == Some(&log_type.name)).collect();
        assert_eq!(ours, documented);
    }
    assert_eq!(DOCUMENTED.lines().count(), 145);
}

#[test]
fn the_arrow_schema_has_the_contracts_types_and_names() {
    let catalog = Catalog::embedded();
    let http = &catalog.types()[catalog.index_of("Cloudflare.HttpRequest").expect("it is embedded")];
    let schema = http.arrow_schema();
    let type_of = |name: &str| schema.field_with_name(name).expect(name).data_type().clone();
    assert_eq!(type_of("EdgeResponseStatus"), DataType::Int16);
    assert_eq!(type_of("ClientSrcPort"), DataType::Int32);
    assert_eq!(type_of("BotScore"), DataType::Int64);
    assert_eq!(type_of("EdgeResponseCompressionRatio"), DataType::Float32);
    assert_eq!(format!("{}", type_of("EdgeStartTimestamp")), "Timestamp(µs, \"UTC\")");
    let DataType::List(element) = type_of("p_any_trace_ids") else { panic!("a list") };
    assert_eq!(element.name(), "element");
    let DataType::Map(entries, _) = type_of("p_rescued_data") else { panic!("a map") };
    assert_eq!(entries.name(), "key_value");
    assert_eq!(schema.fields().last().expect("columns").name(), "p_rescued_data");
    let required: Vec<&str> =
        schema.fields().iter().filter(|f| !f.is_nullable()).map(|f| f.name().as_str()).collect();
    assert_eq!(required, ["EdgeStartTimestamp", "p_event_time", "p_parse_time", "p_log_type", "p_row_id"]);
    let spectrum = &catalog.types()[catalog.index_of("Cloudflare.Spectrum").expect("it is embedded")];
    assert!(spectrum.arrow_schema().field_with_name("p_any_domain_names").is_err());
    assert!(spectrum.arrow_schema().field_with_name("p_any_trace_ids").is_err());
}

fn error(text: &str) -> String {
    Catalog::parse("mine.yml", text).expect_err("the schema is wrong").to_string()
}

#[test]
fn errors_name_file_line_and_field() {
    let base = "schema: Acme.Log\nfields:\n  - name: When\n    type: timestamp\n    required: true\n    isEventTime: true\n";
    let parsed = Catalog::parse("mine.yml", base).expect("a good schema");
    assert_eq!((parsed.table_name().as_str(), parsed.standard.len()), ("acme_log", 9));
    let cases = [
        ("  - name: Size\n    type: bigimt\n", "mine.yml:8: field Size: unknown type `bigimt`"),
        ("  - name: When\n    type: string\n", "mine.yml:7: field When: the name is used twice"),
        (
            "  - name: Ip\n    type: bigint\n    indicators: [ip]\n",
            "mine.yml:8: field Ip: indicators are read from columns of type string",
        ),
        (
            "  - name: Ip\n    type: string\n    indicators: [ipp]\n",
            "mine.yml:9: field Ip: unknown indicator `ipp`",
        ),
        (
            "  - name: T\n    type: timestamp\n    timeFormats: [iso]\n",
            "mine.yml:9: field T: unknown time format `iso`",
        ),
        ("  - name: L\n    type: array\n", "mine.yml:8: field L: an array needs element"),
        (
            "  - name: S\n    type: string\n    required: true\n",
            "mine.yml:7: field S: only the event time can be required",
        ),
        (
            "  - name: p_mine\n    type: string\n",
            "mine.yml:7: field p_mine: names that begin with p_ are flarelake's own",
        ),
    ];
    for (field, expected) in cases {
        let found = error(&format!("{base}{field}"));
        assert!(found.starts_with(expected), "{found}\n  should begin with\n{expected}");
    }
    assert!(
        error("schema: Acme.Log\nfields: []\n")
            .starts_with("mine.yml:1: schema Acme.Log: no field has isEventTime")
    );
    let unknown = error("schema: Acme.Log\nfeilds: []\n");
    assert!(unknown.starts_with("mine.yml:2: ") && unknown.contains("feilds"), "{unknown}");
}

/// A table under a name that SQL gives to something else would be landed into, and never seen.
#[test]
fn no_log_type_takes_a_name_that_is_taken() {
    for (name, table) in [
        ("Lake.Files", "lake_files"),
        ("all_logs", "all_logs"),
        ("Ingested.Objects", "ingested_objects"),
        ("Classification.Failures", "classification_failures"),
        ("Information.Schema", "information_schema"),
        ("Panther.Logs", "panther_logs"),
        ("panther_views.Mine", "panther_views_mine"),
        ("_lease", "_lease"),
        (".Mine", "_mine"),
    ] {
        let fields = "fields:\n  - { name: When, type: timestamp, required: true, isEventTime: true }\n";
        let found = error(&format!("schema: {name}\n{fields}"));
        assert!(
            found.starts_with("mine.yml:1: schema: ") && found.contains(&format!("table {table},")),
            "{found}"
        );
    }
}

#[test]
fn a_folder_of_schemas_adds_and_overrides() {
    let dir = tempfile::tempdir().expect("a folder");
    let text = "schema: Cloudflare.Dns\nmatch: { all: [Timestamp, QueryName] }\nfields:\n  - { name: Timestamp, type: timestamp, required: true, isEventTime: true }\n  - { name: QueryName, type: string, indicators: [hostname] }\n";
    std::fs::write(dir.path().join("dns.yml"), text).expect("written");
    let catalog = Catalog::with_dir(dir.path()).expect("a good folder");
    let names: Vec<&str> = catalog.types().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(
        names,
        ["Cloudflare.Dns", "Cloudflare.Firewall", "Cloudflare.HttpRequest", "Cloudflare.Spectrum"]
    );
    assert_eq!(catalog.types()[0].columns[1].kind, ColumnType::String);
    std::fs::write(dir.path().join("dns2.yml"), text).expect("written");
    let twice = Catalog::with_dir(dir.path()).expect_err("a log type twice").to_string();
    assert!(twice.contains("dns2.yml") && twice.contains("Cloudflare.Dns"), "{twice}");
}

#[test]
fn other_engines_are_told_by_the_statements_that_they_document() {
    use flarelake::schema::Engine;
    let tables = ["cloudflare_spectrum".to_owned()];
    let on_s3 = "s3://acme-lake/cf/";
    for (engine, expected) in [
        (
            Engine::Athena,
            "CREATE EXTERNAL TABLE cloudflare_spectrum\nLOCATION 's3://acme-lake/cf/cloudflare_spectrum/'\nTBLPROPERTIES ('table_type' = 'DELTA');",
        ),
        (
            Engine::Glue,
            "{\"DeltaTables\": [\"s3://acme-lake/cf/cloudflare_spectrum/\"], \"WriteManifest\": false, \"CreateNativeDeltaTable\": true}",
        ),
        (
            Engine::Spark,
            "CREATE TABLE IF NOT EXISTS cloudflare_spectrum USING DELTA LOCATION 's3a://acme-lake/cf/cloudflare_spectrum';",
        ),
        (
            Engine::Trino,
            "CALL delta.system.register_table(schema_name => 'default', table_name => 'cloudflare_spectrum', table_location => 's3://acme-lake/cf/cloudflare_spectrum');",
        ),
        (Engine::Snowflake, "BASE_LOCATION = 'cf/cloudflare_spectrum/'"),
        (
            Engine::BigQuery,
            "OPTIONS (format = 'DELTA_LAKE', uris = ['s3://acme-lake/cf/cloudflare_spectrum']);",
        ),
        (
            Engine::ClickHouse,
            "ENGINE = DeltaLake('https://acme-lake.s3.amazonaws.com/cf/cloudflare_spectrum/');",
        ),
        (
            Engine::DuckDb,
            "CREATE OR REPLACE VIEW cloudflare_spectrum AS SELECT * FROM delta_scan('s3://acme-lake/cf/cloudflare_spectrum');",
        ),
    ] {
        let said = engine.ddl(on_s3, &tables).expect("on S3");
        assert!(said.contains(expected), "{said}");
    }
    let on_disk = "file:///var/lake/";
    assert!(
        Engine::DuckDb
            .ddl(on_disk, &tables)
            .expect("a folder")
            .contains("delta_scan('/var/lake/cloudflare_spectrum')")
    );
    assert!(
        Engine::ClickHouse
            .ddl(on_disk, &tables)
            .expect("a folder")
            .contains("DeltaLakeLocal('/var/lake/cloudflare_spectrum/')")
    );
    let error = Engine::Athena.ddl(on_disk, &tables).expect_err("Athena reads S3").to_string();
    assert_eq!(error, "Athena reads tables on S3; this lake is file:///var/lake/");
}
