<?php
// A page whose content comes from the database, and which counts its visits there.
$database = @pg_connect(sprintf("host=%s port=%s dbname=%s user=%s connect_timeout=5",
    getenv("DATABASE_HOST") ?: "127.0.0.1", getenv("DATABASE_PORT") ?: "5432",
    getenv("DATABASE_NAME") ?: "yado", getenv("DATABASE_USER") ?: "yado"));
if (!$database) {
    http_response_code(503);
    exit("database: no connection\n");
}
if ($_SERVER["DOCUMENT_URI"] === "/ready") {
    $rows = pg_query($database, "select count from visits where page = 'php'");
    header("Content-Type: text/plain");
    exit(pg_num_rows($rows) === 1 ? "ready\n" : "no table\n");
}
$rows = pg_query($database, "update visits set count = count + 1 where page = 'php' returning count");
?>
<!doctype html>
<title>PHP page</title>
<h1>Hello from PHP <?= PHP_VERSION ?></h1>
<p>visits: <?= pg_fetch_result($rows, 0, 0) ?></p>
