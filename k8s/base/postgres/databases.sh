# Run once, when the volume is empty: a database for each service, which no other service's role gets into.
for service in order kitchen delivery; do
  psql --quiet --set ON_ERROR_STOP=1 --username postgres --dbname postgres \
    --set name="$service" --set password="$(cat "/passwords/$service")" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
