// Cosmos DB for MongoDB vCore, for who wants the database in Azure's own hands. One shard: change streams need that.
param location string
param name string
@secure()
param password string

resource cluster 'Microsoft.DocumentDB/mongoClusters@2025-09-01' = {
  name: name
  location: location
  properties: {
    administrator: {
      userName: 'octopus'
      password: password
    }
    serverVersion: '8.0'
    compute: {
      tier: 'M30'
    }
    storage: {
      sizeGb: 128
    }
    sharding: {
      shardCount: 1
    }
    highAvailability: {
      targetMode: 'ZoneRedundantPreferred'
    }
    previewFeatures: ['ChangeStreams']
    publicNetworkAccess: 'Enabled'
  }
}

// Lets in what runs in Azure; the password is asked for all the same.
resource fromAzure 'Microsoft.DocumentDB/mongoClusters/firewallRules@2025-09-01' = {
  parent: cluster
  name: 'azure'
  properties: {
    startIpAddress: '0.0.0.0'
    endIpAddress: '0.0.0.0'
  }
}
