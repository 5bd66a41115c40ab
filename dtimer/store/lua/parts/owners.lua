-- The blocks of schedules that are declared together (`declare_schedules`), each under the name of
-- its owner. The field 'owner:<owner>' of SYS is the record of an owner:
-- '<version>;<declared>...<removed>...'
--
--   declared  'n<length>:<schedule>' for each schedule that the owner declares
--   removed   'g<until>,<paused>,<left>,<fingerprint>,<length>:<schedule>' for each schedule that
--             a later version has removed: what its state was, and until when that is remembered
--
-- Commands  hget hset

-- How long the state of a removed schedule is remembered, in µs: a day.
local REMEMBERED = 86400000000

-- Return a number below, at or above 0 if version `a` is lower than, equal to or higher than `b`.
-- A missing number counts as 0.
local function compare_versions(a, b)
  local next_a, next_b = string.gmatch(a, '%d+'), string.gmatch(b, '%d+')
  while true do
    local x, y = next_a(), next_b()
    if not x and not y then return 0 end
    local difference = (tonumber(x) or 0) - (tonumber(y) or 0)
    if difference ~= 0 then return difference end
  end
end

-- Return the record of an owner as a table, and its text. `version` is '' if there is none or
-- dtimer has not written it. `declared` is a list of names, `removed` has a table for each name.
local function read_owner(owner)
  local text = redis.call('HGET', SYS, 'owner:' .. owner) or ''
  local record = {version = '', declared = {}, removed = {}}
  local version, at = string.match(text, '^([%d.]+);()')
  if not version then return record, text end
  record.version = version
  while at <= #text do
    local length, start = string.match(text, '^n(%d+):()', at)
    local till, paused, left, print
    if not length then
      till, paused, left, print, length, start = string.match(
        text, '^g(%d+),(1?),(%d*),(%w*),(%d+):()', at)
    end
    if not length or #length > 3 then break end
    local name = string.sub(text, start, start + length - 1)
    if till then
      record.removed[name] = {till = tonumber(till), paused = paused, left = left, print = print}
    else
      record.declared[#record.declared + 1] = name
    end
    at = start + length
  end
  return record, text
end

-- Store the record of an owner unless it has this text already.
local function write_owner(owner, record, before)
  local texts = {record.version, ';'}
  for _, name in ipairs(record.declared) do
    texts[#texts + 1] = 'n' .. #name .. ':' .. name
  end
  local names = {}
  for name in pairs(record.removed) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local old = record.removed[name]
    texts[#texts + 1] = 'g' .. digits(old.till) .. ',' .. old.paused .. ',' .. old.left .. ','
      .. old.print .. ',' .. #name .. ':' .. name
  end
  local text = table.concat(texts)
  if text ~= before then redis.call('HSET', SYS, 'owner:' .. owner, text) end
end
