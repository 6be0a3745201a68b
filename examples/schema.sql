-- What the examples keep in their database. Loaded once, when tools/database creates the database;
-- the applications only use it, so that several of them can start at one time.
create table visits (page text primary key, count bigint not null);
insert into visits values ('/', 0), ('php', 0);

-- The site's guest book. A repeated key is the same request again, and is written once.
create table entries (
  id bigserial primary key,
  idempotency_key text unique,
  body text not null,
  written timestamptz not null default now()
);

-- The counting application's rows. Deliberately not unique: a request carried out twice must show. `writer` is the
-- address the instance came from, its host's: who wrote when tells whether two ever answered at once.
create table counted (
  id text not null,
  written timestamptz not null default clock_timestamp(),
  writer inet default inet_client_addr()
);
create index on counted (id);
