-- The checks of the SQL answers, one an answer, under its prompt id: tables with unusual rows, then the rows that
-- the answer must return, in order. A SELECT before them shows the table after an answer that changes it.

-- sql-running-balance
CREATE TABLE transactions (id INTEGER PRIMARY KEY, account_id INT, booked_on TEXT, amount INT);
INSERT INTO transactions VALUES (1, 7, '2024-01-02', 100), (2, 7, '2024-01-01', 50), (3, 7, '2024-01-02', -30),
    (4, 8, '2024-01-01', 5);
VALUES (2, 7, 50, 50), (1, 7, 100, 150), (3, 7, -30, 120), (4, 8, 5, 5);

-- sql-running-balance-month-to-date
CREATE TABLE daily_sales (day TEXT, revenue INT);
INSERT INTO daily_sales VALUES ('2024-02-01', 10), ('2024-01-30', 100), ('2024-01-31', 200), ('2025-01-01', 4);
VALUES ('2024-01-30', 100, 33.3), ('2024-01-31', 300, 66.7), ('2024-02-01', 10, 100.0), ('2025-01-01', 4, 100.0);

-- sql-running-balance-goal-reached
CREATE TABLE campaigns (name TEXT, goal INT);
CREATE TABLE donations (campaign TEXT, donated_on TEXT, amount INT);
INSERT INTO campaigns VALUES ('roof', 100), ('bells', 500), ('garden', 10);
INSERT INTO donations VALUES ('roof', '2024-03-03', 10), ('roof', '2024-03-01', 60), ('roof', '2024-03-02', 40),
    ('bells', '2024-03-01', 499);
VALUES ('bells', NULL), ('garden', NULL), ('roof', '2024-03-02');

-- sql-running-balance-pareto
CREATE TABLE order_lines (product TEXT, revenue INT);
INSERT INTO order_lines VALUES ('pen', 15), ('desk', 30), ('lamp', 25), ('desk', 20), ('clip', 6), ('pad', 4);
VALUES ('desk', 50), ('lamp', 25), ('pen', 15);

-- sql-top-per-group
CREATE TABLE laps (driver TEXT, lap INT, seconds REAL);
INSERT INTO laps VALUES ('Ann', 3, 90.5), ('Ann', 1, 92.0), ('Ann', 2, 90.5), ('Ann', 4, 90.5), ('Bob', 1, 99.0);
VALUES ('Ann', 2, 90.5), ('Ann', 3, 90.5), ('Bob', 1, 99.0);

-- sql-top-per-group-podium
CREATE TABLE scores (game TEXT, player TEXT, points INT);
INSERT INTO scores VALUES ('chess', 'Ann', 9), ('chess', 'Bob', 9), ('chess', 'Cid', 7), ('chess', 'Dee', 5),
    ('chess', 'Eve', 1), ('go', 'Ann', 2);
VALUES ('chess', 1, 'Ann', 9), ('chess', 1, 'Bob', 9), ('chess', 2, 'Cid', 7), ('chess', 3, 'Dee', 5),
    ('go', 1, 'Ann', 2);

-- sql-top-per-group-latest-status
CREATE TABLE shipment_events (id INTEGER PRIMARY KEY, shipment_id INT, status TEXT, occurred_at TEXT);
INSERT INTO shipment_events VALUES (1, 1, 'packed', '2024-01-01 08:00:00'), (2, 1, 'sent', '2024-01-02 08:00:00'),
    (3, 2, 'delivered', '2024-01-03 08:00:00'), (4, 2, 'sent', '2024-01-02 08:00:00'),
    (5, 3, 'packed', '2024-01-01 08:00:00'), (6, 3, 'sent', '2024-01-01 08:00:00');
VALUES (1, 'sent', '2024-01-02 08:00:00'), (3, 'sent', '2024-01-01 08:00:00');

-- sql-top-per-group-dedupe
CREATE TABLE subscribers (id INTEGER PRIMARY KEY, email TEXT, created_at TEXT);
INSERT INTO subscribers VALUES (1, 'a@x.org', '2024-02-01'), (2, 'A@x.org', '2024-01-01'),
    (3, 'b@x.org', '2024-01-01'), (4, 'B@X.org', '2024-01-01'), (5, 'c@x.org', '2024-01-01');
SELECT id, email FROM subscribers ORDER BY id;
VALUES (1, 'a@x.org'), (4, 'B@X.org'), (5, 'c@x.org');

-- sql-streaks
CREATE TABLE logins (user_id INT, login_date TEXT);
INSERT INTO logins VALUES (1, '2024-02-28'), (1, '2024-02-29'), (1, '2024-02-29'), (1, '2024-03-01'),
    (1, '2024-03-05'), (1, '2024-03-06'), (2, '2024-02-28'), (2, '2024-03-01'), (2, '2024-03-03'), (2, '2024-03-04');
VALUES (1, 3), (2, 2);

-- sql-streaks-missing-numbers
CREATE TABLE invoices (number INTEGER PRIMARY KEY);
INSERT INTO invoices VALUES (101), (102), (104), (108), (109);
VALUES (103, 103), (105, 107);

-- sql-streaks-visit-sessions
CREATE TABLE page_views (user_id INT, viewed_at TEXT);
INSERT INTO page_views VALUES (1, '2024-05-01 09:00:00'), (1, '2024-05-01 09:30:00'), (1, '2024-05-01 10:00:01'),
    (1, '2024-05-01 23:50:00'), (1, '2024-05-02 00:10:00'), (2, '2024-05-01 09:05:00'), (2, '2024-05-01 09:45:00');
VALUES (1, '2024-05-01 09:00:00', '2024-05-01 09:30:00', 2), (1, '2024-05-01 10:00:01', '2024-05-01 10:00:01', 1),
    (1, '2024-05-01 23:50:00', '2024-05-02 00:10:00', 2), (2, '2024-05-01 09:05:00', '2024-05-01 09:05:00', 1),
    (2, '2024-05-01 09:45:00', '2024-05-01 09:45:00', 1);

-- sql-hierarchy
CREATE TABLE staff (id INTEGER PRIMARY KEY, name TEXT, manager_id INT);
INSERT INTO staff VALUES (1, 'Chief', NULL), (2, 'Ann', 1), (3, 'Bob', 1), (4, 'Cid', 2), (5, 'Dee', 4),
    (6, 'Eve', 3), (7, 'Abe', 2);
VALUES ('Abe', 1), ('Cid', 1), ('Dee', 2);

-- sql-hierarchy-breadcrumbs
CREATE TABLE categories (id INTEGER PRIMARY KEY, name TEXT, parent_id INT);
INSERT INTO categories VALUES (1, 'Garden', NULL), (2, 'Rakes', 3), (3, 'Tools', 1), (4, 'Books', NULL);
VALUES (4, 'Books'), (1, 'Garden'), (3, 'Garden > Tools'), (2, 'Garden > Tools > Rakes');

-- sql-hierarchy-bill-of-materials
CREATE TABLE components (assembly TEXT, part TEXT, quantity INT);
INSERT INTO components VALUES ('bike', 'wheel', 2), ('bike', 'bolt', 4), ('wheel', 'spoke', 32), ('wheel', 'bolt', 2),
    ('car', 'wheel', 4), ('bike', 'bell', 1);
VALUES ('bell', 1), ('bolt', 8), ('spoke', 64);

-- sql-missing-rows
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INT, ordered_on TEXT);
INSERT INTO customers VALUES (1, 'Ann'), (2, 'Bob'), (3, 'Cid'), (4, 'Dee'), (5, 'Eve');
INSERT INTO orders VALUES (1, 1, '2023-12-31'), (2, 2, '2024-12-31'), (3, 4, '2025-01-01'), (4, 4, '2024-01-01'),
    (5, NULL, '2024-06-01'), (6, 5, '2025-01-01');
VALUES ('Ann'), ('Cid'), ('Eve');

-- sql-missing-rows-all-courses
CREATE TABLE required_courses (course TEXT);
CREATE TABLE completions (student TEXT, course TEXT);
INSERT INTO required_courses VALUES ('law'), ('math');
INSERT INTO completions VALUES ('Ann', 'law'), ('Ann', 'math'), ('Ann', 'art'), ('Bob', 'law'), ('Bob', 'law'),
    ('Cid', 'law'), ('Cid', 'art'), ('Dee', 'math'), ('Dee', 'law'), ('Dee', 'law');
VALUES ('Ann'), ('Dee');

-- sql-missing-rows-stock-reconciliation
CREATE TABLE warehouse_stock (sku TEXT, quantity INT);
CREATE TABLE shop_stock (sku TEXT, quantity INT);
INSERT INTO warehouse_stock VALUES ('A', 1), ('B', 2), ('C', 3), ('E', 0);
INSERT INTO shop_stock VALUES ('A', 1), ('B', 5), ('D', 4);
VALUES ('B', 2, 5), ('C', 3, NULL), ('D', NULL, 4), ('E', 0, NULL);

-- sql-period-comparison
CREATE TABLE orders (id INTEGER PRIMARY KEY, ordered_on TEXT, total INT);
INSERT INTO orders VALUES (1, '2024-01-31', 100), (2, '2024-01-01', 200), (3, '2024-02-10', 400),
    (4, '2024-03-10', 100);
VALUES ('2024-01', 300, NULL), ('2024-02', 400, 33.3), ('2024-03', 100, -75.0);

-- sql-period-comparison-moving-average
CREATE TABLE visits (day TEXT, visitors INT);
INSERT INTO visits VALUES ('2024-02-27', 7), ('2024-02-29', 14), ('2024-03-06', 21);
VALUES ('2024-02-27', 7 / 1.0), ('2024-02-28', 7 / 2.0), ('2024-02-29', 21 / 3.0), ('2024-03-01', 21 / 4.0),
    ('2024-03-02', 21 / 5.0), ('2024-03-03', 21 / 6.0), ('2024-03-04', 21 / 7.0), ('2024-03-05', 14 / 7.0),
    ('2024-03-06', 35 / 7.0);

-- sql-period-comparison-retention
CREATE TABLE signups (user_id INT, signed_up_on TEXT);
CREATE TABLE activity (user_id INT, active_on TEXT);
INSERT INTO signups VALUES (1, '2024-01-31'), (2, '2024-01-05'), (3, '2024-01-09'), (4, '2024-12-31'),
    (5, '2024-06-01');
INSERT INTO activity VALUES (1, '2024-02-01'), (1, '2024-02-29'), (2, '2024-01-31'), (2, '2024-03-01'),
    (4, '2025-01-31'), (5, '2025-07-01');
VALUES ('2024-01', 3, 33.3), ('2024-06', 1, 0.0), ('2024-12', 1, 100.0);