"""vectors on a server: a table of them where the extension pgvector can be had

PostgreSQL alone. The vectors stand beside the documents of the full-text index and are kept as these are. Whether there
is a table of them is up to the server, so the models do not know it, and nothing depends on it: where it is missing,
each process finds vectors by an index of its own. A function makes it, here and whenever an upgrade finds that the
extension has become available.

Revision: 0004
Follows: 0003
Made: 2026-11-21
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# Before 0.8 an index could not go on where a condition had left too few.
# Half floats: a similarity moves by 0.00003, and 1,500 of them still lie inside their row instead of behind a TOAST
# pointer (`toast_tuple_target`), which comparing all of them would follow row by row.
# The primary key as the last one: see `record_table` in the first migration.
# Who is granted, or sees one namespace only, of the documents is so here as well.
MAKE_VECTORS = """
CREATE FUNCTION memory_store_make_vectors() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    version text := coalesce(
        (SELECT extversion FROM pg_extension WHERE extname = 'vector'),
        (SELECT default_version FROM pg_available_extensions WHERE name = 'vector')
    );
    statement text;
BEGIN
    IF version IS NULL OR (string_to_array(version, '.'))[1:2]::int[] < '{0,8}' THEN
        RETURN false;
    END IF;
    BEGIN
        CREATE EXTENSION IF NOT EXISTS vector;
    EXCEPTION WHEN insufficient_privilege THEN
        RAISE NOTICE 'vectors stay in the processes: %', SQLERRM;
        RETURN false;
    END;
    IF to_regtype('halfvec') IS NULL THEN
        RAISE NOTICE 'vectors stay in the processes: the extension is in a schema outside of the search path';
        RETURN false;
    END IF;
    CREATE TABLE vectors (
        namespace text COLLATE "C" NOT NULL,
        id text COLLATE "C" NOT NULL,
        episode_id text COLLATE "C" NOT NULL,
        model_name text COLLATE "C" NOT NULL,
        vector_dim bigint NOT NULL,
        vector halfvec NOT NULL
    ) WITH (toast_tuple_target = 8160);
    CREATE INDEX ix_vectors_namespace_model_name_vector_dim ON vectors (namespace, model_name, vector_dim);
    ALTER TABLE vectors ADD CONSTRAINT pk_vectors PRIMARY KEY (namespace, id);
    FOR statement IN
        SELECT format('CREATE POLICY %I ON vectors AS %s FOR %s TO %s USING (%s) WITH CHECK (%s)', policyname,
            permissive, cmd, (SELECT string_agg(CASE role WHEN 'public' THEN 'PUBLIC' ELSE quote_ident(role) END, ', ')
            FROM unnest(roles) role), qual, with_check)
            FROM pg_policies WHERE schemaname = current_schema() AND tablename = 'documents'
        UNION ALL SELECT 'ALTER TABLE vectors ENABLE ROW LEVEL SECURITY'
            FROM pg_class WHERE oid = 'documents'::regclass AND relrowsecurity
        UNION ALL SELECT format('GRANT %s ON vectors TO %s', privilege_type,
            CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END)
            FROM pg_class CROSS JOIN aclexplode(relacl) WHERE oid = 'documents'::regclass AND grantee <> relowner
    LOOP
        EXECUTE statement;
    END LOOP;
    INSERT INTO backlog (shard, position, namespace, kind)
        SELECT DISTINCT memory_store_shard(namespace), 0, namespace, 'embedding' FROM embeddings
        ON CONFLICT (namespace, shard, position) DO UPDATE SET key = '' WHERE backlog.kind = 'embedding';
    RETURN true;
END $$"""


def upgrade() -> None:
    if op.get_context().dialect.name != "sqlite":
        op.execute(MAKE_VECTORS)
        op.execute("SELECT memory_store_make_vectors()")


def downgrade() -> None:
    if op.get_context().dialect.name != "sqlite":
        op.execute("DROP FUNCTION memory_store_make_vectors")
        op.execute("DROP TABLE IF EXISTS vectors")
